"""What has arrived of a file so far. It survives its process: whoever asks for the same file again goes on from there."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from backends.errors import ModelFileUnusable

BLOCK = 1 << 20


class Note(msgspec.Struct):
    """Beside the bytes: what they belong to."""

    key: str
    """Of the source."""
    validator: str = ""
    """The server's strong ETag, or empty: then only a digest can tell whether the rest belongs to the same file."""


class Part:
    """One writer at a time; who that is, `Shelf.claimed` decides.

    Args:
        key: of the source; the bytes of another one are thrown away.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.note = Note(key)
        self.size_bytes = 0
        self.resumed = False
        """It was not fetched in one piece."""
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    @property
    def _note_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    async def open(self) -> None:
        """Takes up what is there."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            note = msgspec.json.decode(self._note_path.read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            note = None
        self._file = self.path.open("ab+")
        if note is None or note.key != self.note.key:
            self._restart("")
            return
        self.note = note
        self._file.seek(0)
        while block := self._file.read(BLOCK):
            self._hash.update(block)
            self.size_bytes += len(block)
        self.resumed = self.size_bytes > 0

    async def restart(self, validator: str) -> None:
        """From its first byte on."""
        await asyncio.to_thread(self._restart, validator)

    def _restart(self, validator: str) -> None:
        assert self._file is not None
        self._file.truncate(0)
        self.size_bytes, self.resumed, self._hash = 0, False, hashlib.sha256()
        self.note = Note(self.note.key, validator)
        self._note_path.write_bytes(msgspec.json.encode(self.note))

    async def write(self, data: bytes) -> None:
        """
        Raises:
            ModelFileUnusable: the disk does not take it; what is there stays.
        """
        try:
            await asyncio.to_thread(self._write, data)
        except OSError as exc:
            raise ModelFileUnusable(
                f"{self.path.parent} cannot be written: {exc.strerror}; what has arrived is kept, pull again to go on"
            ) from exc

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._hash.update(data)
        self.size_bytes += len(data)

    async def finish(self) -> str:
        """On the disk for good. The digest of all of it."""
        await asyncio.to_thread(self._sync)
        return self._hash.hexdigest()

    def _sync(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def forget(self) -> None:
        """Its file has another name now, or is worth nothing."""
        self.close()
        for path in (self.path, self._note_path):
            path.unlink(missing_ok=True)


Progress = Callable[[int, int | None], None]
"""(bytes that are here, bytes in all if that is known)"""
