"""Follows one file of the journal: which requests have ended, which have only begun, and how far it was read."""

import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.journal import Begin, End, whole_lines

log = logging.getLogger("chasqui.ledger")

CHUNK_BYTES = 256 * 1024
"""About four hundred requests: two milliseconds of work at a time."""


class _Head(msgspec.Struct):
    type: str
    id: str


_head = msgspec.json.Decoder(_Head)
_begin = msgspec.json.Decoder(Begin)


class Piece(NamedTuple):
    """What the next lines say; it counts as read when `Reader.done` is told so."""

    ends: dict[str, bytes]
    """Request -> its line."""
    contents: list[bytes]
    begins: dict[str, bytes]
    next_offset: int


class Reader:
    """
    Args:
        lock: take the file over from a process that has died.

    Raises:
        OSError: it cannot be read, or a living process has locked it.
    """

    def __init__(self, path: Path, *, lock: bool = False) -> None:
        self.path = path
        self.offset = 0
        self.open: dict[str, bytes] = {}
        """Requests that have begun here and not ended anywhere: request -> its last `begin`."""
        self._file = os.open(path, (os.O_RDWR if lock else os.O_RDONLY) | os.O_CLOEXEC)
        if lock:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                raise

    def next(self) -> Piece | None:
        """The lines that follow, as many as a piece takes; None: there is no whole line."""
        raw = os.pread(self._file, CHUNK_BYTES, self.offset)
        size = CHUNK_BYTES
        while b"\n" not in raw and len(raw) == size:  # one line that is longer than a piece
            size *= 2
            raw = os.pread(self._file, size, self.offset)
        end = raw.rfind(b"\n") + 1
        if end == 0:
            return None
        piece = Piece({}, [], {}, self.offset + end)
        for line in whole_lines(raw[:end]):
            head = _head.decode(line)
            if head.type == "end":
                piece.ends[head.id] = line
                piece.begins.pop(head.id, None)
            elif head.type == "begin":
                piece.begins[head.id] = line
            else:
                piece.contents.append(line)
        return piece

    def done(self, piece: Piece) -> None:
        self.offset = piece.next_offset
        self.open.update(piece.begins)

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    @property
    def at_end(self) -> bool:
        """There is no whole line behind what was read."""
        return self.next() is None

    def crashed(self) -> Iterator[tuple[str, bytes]]:
        """The requests that nobody will end any more, each with its line for the ledger: settled at what they held."""
        for request_id, line in self.open.items():
            try:
                yield request_id, msgspec.json.encode(crashed(_begin.decode(line)))
            except msgspec.ValidationError:  # of another version of this program
                log.error("what %s held is not known; it is not in the ledger", request_id)

    def close(self) -> None:
        os.close(self._file)


def crashed(begin: Begin) -> End:
    return End(
        id=begin.id,
        at=begin.at,
        key=begin.key,
        role=begin.role,
        model=begin.model,
        entry=begin.entry,
        backend=begin.backend,
        operation=begin.operation,
        stream=0,
        attempts=1,
        admitted=1,
        prompt_tokens=begin.prompt_tokens,
        completion_tokens=begin.held_tokens - begin.prompt_tokens,
        cached_tokens=0,
        cost=begin.held_cost,
        compute_ms=0,
        queue_ms=0,
        first_byte_ms=None,
        total_ms=0,
        status=0,
        outcome="crashed",
        error="",
        cache="",
        user=begin.user,
        tags=begin.tags,
    )
