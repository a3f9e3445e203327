"""A backend that plays back given steps. For tests and demonstrations: no engine, no network, no clock."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from backends.base import Answer, Call, Event, PromptSize
from backends.errors import BackendError
from backends.wire import Usage

Step = Answer | Event | BackendError | asyncio.Event
"""Answers are given to `complete`, events to `stream`; an error is raised when its turn comes; an asyncio.Event is waited for."""


class Scripted:
    local = True
    quotes = False

    def __init__(self, name: str, steps: Sequence[Step], *, prompt_size: PromptSize | None = None) -> None:
        self.name = name
        self.calls: list[Call] = []
        self.closed_early = 0
        self._steps = steps
        self._prompt_size = prompt_size

    async def complete(self, call: Call) -> Answer:
        self.calls.append(call)
        for step in self._steps:
            match step:
                case asyncio.Event():
                    await step.wait()
                case BackendError():
                    raise step
                case Answer():
                    return step
        raise AssertionError(f"the script of '{self.name}' has no answer")

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        self.calls.append(call)
        ended = False
        try:
            for step in self._steps:
                match step:
                    case asyncio.Event():
                        await step.wait()
                    case BackendError():
                        ended = True
                        raise step
                    case Event():
                        yield step
            ended = True
        finally:
            self.closed_early += not ended

    async def count(self, call: Call) -> PromptSize | None:
        return self._prompt_size

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return None

    async def identity(self) -> str:
        return f"scripted:{self.name}"

    def status(self) -> str:
        return "ready"

    async def aclose(self) -> None:
        return None


def chat_answer(text: str, usage: Usage) -> Answer:
    """A minimal whole answer with this text."""
    import msgspec

    body = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }
    return Answer(msgspec.json.encode(body), usage, {})
