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
    shared: int
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
        return Spoken((step.text,) if step.text else (), *step[1:])
    parts = parser.feed(step.text)
    finish = "stop" if parser.full else step.finish
    if step.finish is not None:
        parts += parser.finish()
    if finish == "stop" and parser.calls and not tools.named:  # for a tool that was named, OpenAI says "stop"
        finish = "tool_calls"
    return Spoken(parts, step.tokens, finish, step.shared, step.likely, step.timings)


def plus(usage: Usage, spoken: Spoken) -> Usage:
    details = usage.prompt_tokens_details
    if spoken.shared:
        details = {"cached_tokens": usage.cached_tokens + spoken.shared}
    return Usage(usage.prompt_tokens, usage.completion_tokens + spoken.tokens, details)
