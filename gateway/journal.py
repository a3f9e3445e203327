"""Two lines per request in append-only files: `begin` before an upstream is called, `end` before the last byte goes out.

A process writes one file at a time and keeps it locked; `ledger_writer.py` moves what is in the files into the database and
removes them. A line is `crc32 json`, written whole in one unbuffered call; a line that was torn by a crash fails its checksum
and is dropped by readers. Not synced to disk unless that is asked for: survives `kill -9`, not a power cut.
"""

import fcntl
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from gateway.errors import StoreUnavailable

ROTATE_BYTES = 16 * 1024 * 1024
ATTEMPTS = 5


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    id: str
    key: str
    role: str
    model: str
    entry: str
    backend: str
    operation: str
    prompt_tokens: int
    """Of `held_tokens`, about."""
    held_tokens: int
    held_cost: int
    """Billionths of a dollar."""
    user: str
    tags: Sequence[str]
    at: int
    """Unix microseconds."""


class End(msgspec.Struct, frozen=True, tag="end"):
    """A row of the ledger; see `policies/ledger.py` for what the fields mean."""

    id: str
    at: int
    key: str
    role: str
    model: str
    entry: str
    backend: str
    operation: str
    stream: int
    attempts: int
    admitted: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: int
    compute_ms: int
    queue_ms: int
    first_byte_ms: int | None
    total_ms: int
    status: int
    outcome: str
    error: str
    cache: str
    user: str
    tags: Sequence[str]


class Content(msgspec.Struct, frozen=True, tag="content"):
    id: str
    request: str
    answer: str


Entry = Begin | End | Content


class Journal:
    """
    Args:
        folder: made if missing.
        fsync: every line is on the disk before anything goes on.
    """

    def __init__(self, folder: Path, *, fsync: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._fsync = fsync
        self._clock = clock
        self._numbers = itertools.count()
        self._file: int | None = None
        self._written = 0
        self._locks: dict[Path, int] = {}
        """Of files that nothing more comes into: they are this process's as long as they are there."""
        self.files: list[Path] = []
        """Those that this process has written and that are still there, oldest first; the last one may grow."""
        self.failing = False
        """The last line could not be written."""

    def open(self) -> None:
        """Does nothing when it is open.

        Raises:
            StoreUnavailable
        """
        if self._file is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path, self._file = self._made()
        except OSError as exc:
            raise StoreUnavailable(f"the journal in {self.folder} cannot be written: {exc.strerror}") from None
        self.files.append(path)
        self._written = 0

    def begin(self, entry: Begin) -> None:
        """
        Raises:
            StoreUnavailable: nothing may be started.
        """
        self._write(encode(entry))

    def end(self, entry: End, content: Content | None = None) -> None:
        """
        Raises:
            StoreUnavailable: the answer's last byte should not go out as if all were well.
        """
        self._write(encode(entry) if content is None else encode(content) + encode(entry))

    def close(self) -> None:
        """The file is whole; the next line begins another. It stays locked, so that nobody takes it for a dead process's."""
        if self._file is not None:
            self._locks[self.files[-1]] = self._file
            self._file = None

    def forget(self, path: Path) -> None:
        """All of it is in the ledger."""
        self.files.remove(path)
        if path in self._locks:
            os.close(self._locks.pop(path))

    def release(self) -> None:
        """At the end: whoever starts next in this folder takes over what is left."""
        self.close()
        for file in self._locks.values():
            os.close(file)
        self._locks.clear()

    @property
    def growing(self) -> Path | None:
        """The file that more lines may still come into."""
        return self.files[-1] if self._file is not None else None

    def _made(self) -> tuple[Path, int]:
        """A new file, locked. Whoever looks for files of dead processes may have locked it in between: then another."""
        for _ in range(ATTEMPTS):
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._clock()))
            path = self.folder / f"{stamp}-{os.getpid()}-{time.monotonic_ns()}-{next(self._numbers)}.log"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.stat()
                return path, file
            except OSError:
                os.close(file)
        raise OSError(0, "its files are locked by somebody else")

    def _write(self, lines: bytes) -> None:
        if self._file is None or self._written > ROTATE_BYTES:
            self.close()
            self.open()
        assert self._file is not None
        try:
            written = os.write(self._file, lines)
            if self._fsync:
                os.fdatasync(self._file)
        except OSError as exc:
            self.failing = True
            raise StoreUnavailable(f"the journal cannot be written: {exc.strerror}; free some disk space") from None
        self._written += written
        if written < len(lines):  # the disk filled up in the middle; readers drop the torn line, a new file follows it
            self.close()
            self.failing = True
            raise StoreUnavailable("the journal cannot be written: the disk is full; free some disk space")

        self.failing = False


def encode(entry: Entry) -> bytes:
    data = msgspec.json.encode(entry)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def whole_lines(raw: bytes) -> Iterator[bytes]:
    """The JSON of each line that is undamaged."""
    for line in raw.split(b"\n"):
        checksum, _, data = line.partition(b" ")
        if data and checksum == b"%08x" % zlib.crc32(data):
            yield data


def read(path: Path) -> Iterator[Entry]:
    """The whole lines of a file, in order; torn or damaged ones are left out."""
    decoder = msgspec.json.Decoder(Entry)
    for data in whole_lines(path.read_bytes()):
        yield decoder.decode(data)
