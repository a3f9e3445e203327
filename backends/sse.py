"""Server-sent events from bytes. No sockets, no decoding of content.

Lines end in \\n, \\r\\n or \\r and in nothing else: U+2028 and its kin are ordinary content (HTML living standard, §9.2.6).
"""

import re
from typing import NamedTuple

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_DATA, _END = b"data: ", b"\n\n"
_BETWEEN = _END + _DATA


class Frame(NamedTuple):
    """One event as it came."""

    raw: bytes
    """Every byte of it, the blank line included: forwarding `raw` forwards the stream."""
    data: bytes | None
    """The `data:` lines joined by newlines; None for comments and events without data."""
    event: str | None = None


class FrameTooLarge(Exception):
    """An event grew beyond the limit without ending."""


class Reader:
    """Feed it bytes cut anywhere; it gives back whole frames.

    A bare \\r at the end of a piece waits for the next one: it may be half of \\r\\n.
    """

    def __init__(self, *, max_frame_bytes: int = 16 * 1024 * 1024) -> None:
        self._pending = bytearray()
        self._scanned = 0  # where the search for the frame's end goes on: a large event must not be rescanned per piece
        self._line_start = 0
        self._max_frame_bytes = max_frame_bytes
        self._at_start = True

    def plain(self, piece: bytes) -> list[bytes] | None:
        """The data of each event, where the piece is nothing but whole events of one `data: ` line each and nothing is
        pending; None: it needs `feed`. Most pieces are like that, and this takes a fifth of the time.
        """
        if self._pending or not piece.startswith(_DATA) or not piece.endswith(_END) or b"\r" in piece:
            return None
        events = piece[len(_DATA) : -len(_END)].split(_BETWEEN)
        if piece.count(b"\n") != 2 * len(events):
            return None
        self._at_start = False
        return events

    def feed(self, piece: bytes) -> list[Frame]:
        """
        Raises:
            FrameTooLarge: the unfinished event is longer than `max_frame_bytes`.
        """
        self._pending += piece
        if self._at_start and len(self._pending) >= len(_BYTE_ORDER_MARK):
            self._at_start = False
            if self._pending.startswith(_BYTE_ORDER_MARK):  # one is allowed, and not part of the first field
                del self._pending[: len(_BYTE_ORDER_MARK)]
        frames: list[Frame] = []
        while (end := self._frame_end()) is not None:
            frames.append(_frame(bytes(self._pending[:end])))
            del self._pending[:end]
            self._scanned = self._line_start = 0
        if len(self._pending) > self._max_frame_bytes:
            raise FrameTooLarge(f"an event is longer than {self._max_frame_bytes} bytes")
        return frames

    def rest(self) -> bytes:
        """What came after the last complete frame."""
        return bytes(self._pending)

    def _frame_end(self) -> int | None:
        """Index just behind the blank line that ends the first frame."""
        pending = self._pending
        while (match := _LINE_END.search(pending, self._scanned)) is not None:
            if match.group() == b"\r" and match.end() == len(pending):
                return None
            blank = match.start() == self._line_start
            self._scanned = self._line_start = match.end()
            if blank:
                return match.end()
        self._scanned = len(pending)
        return None


def _frame(raw: bytes) -> Frame:
    data: list[bytes] = []
    event = None
    for line in _LINE_END.split(raw):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            event = value.decode("utf-8", "replace")
    return Frame(raw, b"\n".join(data) if data else None, event)


def encode(data: bytes, *, event: str | None = None) -> bytes:
    """One frame. `data` must not contain line ends (JSON never does)."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + data + b"\n\n"


DONE = encode(b"[DONE]")
