"""Two lines per request in an append-only file: `begin` before an upstream is called, `end` before the last byte goes out.

One file per process, locked while it lives. A line is `crc32 json`, written whole in one unbuffered call; a line that was
torn by a crash fails its checksum and is dropped by readers. Not synced to disk: survives `kill -9`, not a power cut.
"""

import fcntl
import os
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from gateway.errors import StoreUnavailable

ROTATE_BYTES = 64 * 1024 * 1024
KEEP_FILES = 8


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    id: str
    key: str
    model: str
    held_tokens: int
    at: float
    """Unix seconds."""


class End(msgspec.Struct, frozen=True, tag="end"):
    id: str
    key: str
    model: str
    backend: str | None
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    status: int
    outcome: str
    """complete, failed, broken (after the first byte) or client_left."""
    total_ms: int
    at: float


class Journal:
    """
    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._file: int | None = None
        self._written = 0
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
            self._folder.mkdir(parents=True, exist_ok=True)
            path = (
                self._folder
                / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(self._clock()))}-{os.getpid()}-{time.monotonic_ns()}.log"
            )
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise StoreUnavailable(f"the journal in {self._folder} cannot be written: {exc.strerror}") from None
        self._written = 0
        self._forget_old_files()

    def begin(self, entry: Begin) -> None:
        """
        Raises:
            StoreUnavailable: nothing may be started.
        """
        self._write(entry)

    def end(self, entry: End) -> None:
        """
        Raises:
            StoreUnavailable: the answer's last byte should not go out as if all were well.
        """
        self._write(entry)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, entry: Begin | End) -> None:
        if self._file is None or self._written > ROTATE_BYTES:
            self.close()
            self.open()
        assert self._file is not None
        line = encode(entry)
        try:
            written = os.write(self._file, line)
        except OSError as exc:
            self.failing = True
            raise StoreUnavailable(f"the journal cannot be written: {exc.strerror}; free some disk space") from None
        self._written += written
        if written < len(line):  # the disk filled up in the middle; readers drop the torn line, a new file follows it
            self.close()
            self.failing = True
            raise StoreUnavailable("the journal cannot be written: the disk is full; free some disk space")

        self.failing = False

    def _forget_old_files(self) -> None:
        """Until the ledger takes them over, the newest files are kept and the others go."""
        for old in sorted(self._folder.glob("*.log"))[:-KEEP_FILES]:
            if _is_unlocked(old):
                old.unlink(missing_ok=True)


def encode(entry: Begin | End) -> bytes:
    data = msgspec.json.encode(entry)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def read(path: Path) -> Iterator[Begin | End]:
    """The whole lines of a file, in order; torn or damaged ones are left out."""
    decoder = msgspec.json.Decoder(Begin | End)
    for line in path.read_bytes().split(b"\n"):
        checksum, _, data = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(data) and data:
            yield decoder.decode(data)


def _is_unlocked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False
