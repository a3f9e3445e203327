"""A fleet with one member for tests, and requests to it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from backends import sse
from backends.base import CHAT, COMPLETIONS, EMBEDDINGS, Call
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fleet import Fleet
from backends.settings import LlamaCppSettings
from backends.wire import Body


def settings(**fields: Any) -> LlamaCppSettings:
    options = {"name": "local", "engine": "llama_cpp", "model": "m.gguf", "threads": 1, "context_tokens": 256}
    return LlamaCppSettings.model_validate(options | fields)


@asynccontextmanager
async def running(path: Path, **fields: Any) -> AsyncIterator[LocalBackend]:
    """A backend over `path`, asleep; its worker ends with the context."""
    fleet = Fleet()
    member = fleet.add(settings(**fields), path)
    try:
        yield LocalBackend(member, serves=fields.get("serves", "chat"))
    finally:
        await fleet.aclose()


def chat(content: str = "who carries the message", **fields: Any) -> Call:
    messages = [{"role": "user", "content": content}]
    return call(CHAT, **({"messages": messages, "temperature": 0, "max_tokens": 12} | fields))


def legacy(prompt: object, **fields: Any) -> Call:
    return call(COMPLETIONS, **({"prompt": prompt, "temperature": 0} | fields))


def embedding(inputs: object, **fields: Any) -> Call:
    return call(EMBEDDINGS, input=inputs, **fields)


def call(path: str, **fields: Any) -> Call:
    return Call(path, Body(json.dumps({"model": "theirs"} | fields).encode()), "req_1", "ours")


async def texts(backend: LocalBackend, asked: Call) -> list[str]:
    choices = json.loads((await backend.complete(asked)).body)["choices"]
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]


async def events(backend: LocalBackend, asked: Call) -> list[dict[str, Any]]:
    """The chunks of a stream, as a client decodes them."""
    raw = b"".join([event.raw async for event in backend.stream(asked)])
    frames = [frame.data for frame in sse.Reader().feed(raw)]
    assert frames.pop() == b"[DONE]"
    return [json.loads(data or b"") for data in frames]
