"""Documents are read in processes of their own: a file that takes all memory, never ends, or breaks the reader costs itself, and
nothing else. A process is started when it is needed, used again, and replaced when it has died or has read many.
"""

import asyncio
import contextlib
import signal
import struct
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from retrieval.chunking import Cut
from retrieval.errors import DocumentUnreadable
from retrieval.settings import ChunkSettings, FilesSettings

DOCUMENTS_EACH = 200
WALL, SLACK_S = 1.5, 5.0
"""Of the seconds that a document may work, how many may pass by the clock: others work, too."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Reading:
    """A document that a process has read and holds."""

    title: str
    words: list[str]
    """Distinct; whoever knows the embedding model counts their tokens."""
    size_bytes: int
    """Of the text."""
    _child: "_Child"

    async def chunks(self, counts: Mapping[str, int], settings: ChunkSettings, *, window_tokens: int) -> list[Cut]:
        job = {"do": "chunk", "counts": counts, "settings": settings.model_dump(), "window_tokens": window_tokens}
        answer = await self._child.ask(job)
        return [
            Cut(heading, text, tokens, page, tuple(windows))
            for heading, text, tokens, page, windows in answer["chunks"]
        ]


class Parsers:
    def __init__(self, settings: FilesSettings) -> None:
        self._settings = settings
        self._free = asyncio.Semaphore(settings.parsers)
        self._idle: list[_Child] = []
        self._closed = False

    @asynccontextmanager
    async def reading(self, name: str, data: bytes) -> AsyncIterator[Reading]:
        """
        Raises:
            DocumentUnreadable
        """
        async with self._borrowed(name) as child:
            answer = await child.ask(self._job("parse", name, data))
            yield Reading(answer["title"], answer["words"], answer["bytes"], child)

    async def text(self, name: str, data: bytes) -> str:
        """
        Raises:
            DocumentUnreadable
        """
        async with self._borrowed(name) as child:
            answer = await child.ask(self._job("text", name, data))
            return str(answer["text"])

    def _job(self, do: str, name: str, data: bytes) -> dict[str, Any]:
        if len(data) > self._settings.max_mb * 2**20:
            size, most = len(data) / 2**20, self._settings.max_mb
            raise DocumentUnreadable(f"{name} has {size:.0f} MB; {most:g} are read at most (files.max_mb)")
        return {"do": do, "name": name, "data": data, "cpu_s": self._settings.parse_s}

    @asynccontextmanager
    async def _borrowed(self, name: str) -> AsyncIterator["_Child"]:
        async with self._free:
            child = await self._usable()
            child.begin(name)
            whole = False
            try:
                yield child
                whole = True
            except DocumentUnreadable:
                whole = True  # it has said so itself, or is dead
                raise
            finally:
                if whole and child.usable and not self._closed:
                    self._idle.append(child)
                else:  # cancelled in the middle of a frame, or worn
                    await asyncio.shield(child.aclose())

    async def _usable(self) -> "_Child":
        """One that waits, else a new one; one that has died while it waited is nobody's fault."""
        while self._idle:
            child = self._idle.pop()
            if child.usable:
                return child
            await child.aclose()
        return await _Child.start(self._settings)

    async def aclose(self) -> None:
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()


class _Child:
    def __init__(self, process: asyncio.subprocess.Process, settings: FilesSettings) -> None:
        self._process = process
        self._settings = settings
        self._name = ""
        self._documents = 0
        self._until = 0.0

    @classmethod
    async def start(cls, settings: FilesSettings) -> "_Child":
        memory = str(settings.parse_memory_mb * 2**20)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "retrieval.parser_child", memory,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return cls(process, settings)

    @property
    def usable(self) -> bool:
        return self._process.returncode is None and self._documents < DOCUMENTS_EACH

    def begin(self, name: str) -> None:
        self._name = name
        self._documents += 1
        self._until = asyncio.get_running_loop().time() + self._settings.parse_s * WALL + SLACK_S

    async def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            DocumentUnreadable: what it answers, or what became of it.
        """
        data = await asyncio.to_thread(msgspec.msgpack.encode, job)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            async with asyncio.timeout_at(self._until):  # the process counts its own seconds of work
                with contextlib.suppress(ConnectionError, RuntimeError):  # it is dead, and reading says so
                    stdin.write(_LENGTH.pack(len(data)) + data)
                    await stdin.drain()
                head = await stdout.readexactly(_LENGTH.size)
                told = await stdout.readexactly(_LENGTH.unpack(head)[0])
                answer: dict[str, Any] = await asyncio.to_thread(msgspec.msgpack.decode, told)
        except TimeoutError:
            await self.aclose()
            raise DocumentUnreadable(f"{self._name} takes too long to be read (files.parse_s)") from None
        except asyncio.IncompleteReadError:
            code = await self._process.wait()
            raise DocumentUnreadable(f"{self._name} {_ended(code)}") from None
        if "unreadable" in answer:
            raise DocumentUnreadable(answer["unreadable"], kind=answer["kind"])
        return answer

    async def aclose(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def _ended(code: int) -> str:
    if -code == signal.SIGXCPU:
        return "takes too long to be read (files.parse_s)"
    return "cannot be read: it needs more memory than is allowed (files.parse_memory_mb), or breaks the reader"
