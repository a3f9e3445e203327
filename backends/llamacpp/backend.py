"""A local model as a `Backend`: wakes its worker, then is a relay like any other."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from backends.base import Answer, Call, Event, PromptSize
from backends.llamacpp.fleet import Member


class _Counts(msgspec.Struct):
    counts: list[int]


class LocalBackend:
    local = True
    quotes = False

    def __init__(self, member: Member, *, serves: str) -> None:
        self.name = member.name
        self.serves = serves
        self._member = member
        self._digest: tuple[tuple[int, int], str] | None = None

    async def complete(self, call: Call) -> Answer:
        async with self._member.awake() as relay:
            return await relay.complete(call)

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        async with self._member.awake() as relay, aclosing(relay.stream(call)) as events:
            async for event in events:
                yield event

    async def count(self, call: Call) -> PromptSize:
        async with self._member.awake() as relay:
            return msgspec.json.decode(await relay.post("/count", call.body.raw), type=PromptSize)

    async def count_texts(self, texts: Sequence[str]) -> list[int]:
        async with self._member.awake() as relay:
            reply = await relay.post("/tokenize", msgspec.json.encode({"contents": texts}))
        return msgspec.json.decode(reply, type=_Counts).counts

    async def identity(self) -> str:
        """The file's digest; read again only when the file changed."""
        stat = await asyncio.to_thread(os.stat, self._member.path)
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._digest is None or self._digest[0] != stamp:
            self._digest = (stamp, await asyncio.to_thread(_sha256, self._member.path))
        return f"gguf:{self._digest[1]}"

    @property
    def pid(self) -> int | None:
        """Of the worker, while it lives."""
        return self._member.pid

    def status(self) -> str:
        return self._member.status()

    async def aclose(self) -> None:
        await self._member.aclose()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
