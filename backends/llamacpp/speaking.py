"""Steps of a sequence -> what an answer says: words, calls of tools, an end."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from backends.llamacpp.generation import Generator
from backends.llamacpp.sequences import Ask, Likely, Step, Timings
from backends.llamacpp.tool_formats import ToolFormat
from backends.llamacpp.tool_parser import Part, ToolParser
from backends.llamacpp.tools import Tools
from backends.wire import Usage


class Spoken(NamedTuple):
    parts: Sequence[Part]
    tokens: int
    finish: str | None
    likely: Sequence[Likely]
    timings: Timings

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


async def speak(generator: Generator, ask: Ask, tools: Tools | None, form: ToolFormat) -> AsyncGenerator[Spoken, None]:
    """As `Generator.generate`, with the calls that the text holds."""
    parser = ToolParser(form, tools.names, parallel=tools.parallel) if tools is not None else None
    async with aclosing(generator.generate(ask)) as steps:
        async for step in steps:
            spoken = _spoken(step, parser, tools)
            yield spoken
            if spoken.finish is not None:
                return


def _spoken(step: Step, parser: ToolParser | None, tools: Tools | None) -> Spoken:
    if parser is None or tools is None:
        return Spoken((step.text,) if step.text else (), step.tokens, step.finish, step.likely, step.timings)
    parts = parser.feed(step.text)
    finish = "stop" if parser.full else step.finish
    if step.finish is not None:
        parts += [] if tools.forced else parser.finish()  # a call that was cut off is no text
    if finish == "stop" and parser.calls and not tools.named:  # for a tool that was named, OpenAI says "stop"
        finish = "tool_calls"
    return Spoken(parts, step.tokens, finish, step.likely, step.timings)


class Tally:
    """The usage of a request, as its answers grow.

    A prompt counts once, however many answers it has; of it counts as cached what none of them had to be decoded for.
    """

    def __init__(self, prompt_tokens: int, choices: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._choices = choices
        self._completion_tokens = 0
        self._cached: dict[int, int] = {}
        """By prompt."""
        self._seen: set[int] = set()

    def add(self, index: int, spoken: Spoken) -> Usage:
        self._completion_tokens += spoken.tokens
        if index not in self._seen:
            self._seen.add(index)
            prompt = index // self._choices
            self._cached[prompt] = min(self._cached.get(prompt, spoken.timings.cache_n), spoken.timings.cache_n)
        return self.usage

    @property
    def usage(self) -> Usage:
        cached = sum(self._cached.values())
        return Usage(self._prompt_tokens, self._completion_tokens, {"cached_tokens": cached} if cached else None)
