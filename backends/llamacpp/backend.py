"""A local model as a `Backend`: wakes its worker, then is a relay like any other."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from backends.base import Answer, Call, Event, PromptSize
from backends.errors import BackendUnavailable, InvalidRequest, ModelFileUnusable, UpstreamBroken
from backends.llamacpp.member import Member
from backends.llamacpp.read_ahead import read_ahead
from backends.llamacpp.scope import scoped
from backends.relay import Relay

T = TypeVar("T")

DRAIN_S = 60.0
"""That an administrator waits for requests to end."""

DEATH_LOOKS_LIKE = (BackendUnavailable, UpstreamBroken)
"""Nobody listens any more, or the connection broke; a second death is the request's own, and told."""


class _Counts(msgspec.Struct):
    counts: list[int]


class LocalBackend:
    """
    Args:
        find: where a model lies that is asked for by name.
    """

    local = True
    quotes = False

    def __init__(
        self,
        member: Member,
        *,
        serves: str,
        sharing: str = "role",
        find: Callable[[str], Path] = Path,
    ) -> None:
        self.name = member.name
        self._find = find
        self._sharing = sharing
        self.serves = serves
        self._member = member
        self._digest: tuple[tuple[Path, int, int], str] | None = None

    async def complete(self, call: Call) -> Answer:
        call = scoped(call, self._sharing)
        return await self._reaching(lambda relay: relay.complete(call))

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        async with aclosing(read_ahead(self._streamed(scoped(call, self._sharing)))) as events:
            async for event in events:
                yield event

    async def _streamed(self, call: Call) -> AsyncGenerator[Event, None]:
        async with self._member.awake() as relay, aclosing(relay.stream(call)) as events:
            try:
                first = await anext(events)
            except DEATH_LOOKS_LIKE:
                if not await self._member.has_died():
                    raise
            else:
                yield first
                async for event in events:
                    yield event
                return
        async with self._member.awake() as relay, aclosing(relay.stream(call)) as events:
            async for event in events:
                yield event

    async def count(self, call: Call) -> PromptSize:
        reply = await self._reaching(lambda relay: relay.post("/count", call.body.raw))
        return msgspec.json.decode(reply, type=PromptSize)

    async def count_texts(self, texts: Sequence[str]) -> list[int]:
        body = msgspec.json.encode({"contents": texts})
        reply = await self._reaching(lambda relay: relay.post("/tokenize", body))
        return msgspec.json.decode(reply, type=_Counts).counts

    async def _reaching(self, ask: Callable[[Relay], Awaitable[T]]) -> T:
        """Ask the worker; if it died before it said anything, ask the next one, once. Nothing was delivered."""
        async with self._member.awake() as relay:
            try:
                return await ask(relay)
            except DEATH_LOOKS_LIKE:
                if not await self._member.has_died():
                    raise
        async with self._member.awake() as relay:
            return await ask(relay)

    async def identity(self) -> str:
        """The file's digest; read again only when the file changed.

        Raises:
            BackendUnavailable: the file is not there any more.
        """
        path = self._member.path
        try:
            stat = await asyncio.to_thread(os.stat, path)
            stamp = (path, stat.st_size, stat.st_mtime_ns)
            if self._digest is None or self._digest[0] != stamp:
                self._digest = (stamp, await asyncio.to_thread(_sha256, path))
        except OSError as exc:
            raise BackendUnavailable(self.name, f"its model file cannot be read: {exc.strerror}") from None
        return f"gguf:{self._digest[1]}"

    @property
    def pid(self) -> int | None:
        """Of the worker, while it lives."""
        return self._member.pid

    def status(self) -> str:
        return self._member.status()

    async def describe(self) -> dict[str, Any]:
        await self._member.ask_status()
        told = {"status": self.status(), "pid": self.pid, "file": self._member.path.name}
        return {**self._member.status_told, **told, "pinned": self._member.settings.pinned}

    async def load(self) -> None:
        await self._member.load()

    async def unload(self) -> None:
        await self._member.unload(DRAIN_S)

    async def swap(self, model: str) -> None:
        try:
            path = self._find(model)
        except ModelFileUnusable as exc:
            raise InvalidRequest(str(exc), param="model") from None
        await self._member.swap(path, DRAIN_S)

    async def aclose(self) -> None:
        await self._member.aclose()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
