"""One HTTP/1.1 connection to an upstream, one exchange at a time. Strict: whatever is doubtful ends the connection.

States: idle -> busy (`begin`) -> idle (`reusable` after the answer's end) or closed. Only the event loop's callbacks move
a busy connection forward; whoever holds it waits in `head` and `piece`. Bytes that arrive while it is idle, anything behind
an answer's end, both or two lengths, a length where none may be, a parse error: the connection is never used again, so
that no answer can reach another request. What arrived before a failure is handed out before the failure is raised.
"""

import asyncio
import select
from collections.abc import Callable, Iterator
from typing import Any, cast

import httptools

from backends.transport import SLICE_BYTES, ConnectionBroken, DeadlinePassed, TransportError, Upload

MAX_HEAD_BYTES = 64 * 1024
MAX_INFORMATIONAL = 8
HIGH_WATER_BYTES = 128 * 1024

NO_BODY = frozenset({204, 304})


class Connection(asyncio.Protocol):
    """
    Args:
        on_lost: told once, when the connection has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[["Connection"], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._poll = select.poll()
        self.closed = False
        self.idle_since_s = 0.0
        self._busy = False
        self._clean = True
        self._reset()

    def _reset(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self._head_bytes = 0
        self._trailer_bytes = 0
        self._head_done = False
        self._complete = False
        self._sent = False
        self._informational = 0
        self._until_close = False
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._failure: TransportError | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self._complete:
            self._clean = False
            self.abort()
            return
        if not self._head_done:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and len(data) < self._head_bytes:
                self._fail(f"an answer's head of more than {MAX_HEAD_BYTES} bytes")
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._misunderstood(exc)

    def _misunderstood(self, exc: Exception) -> None:
        if self._complete:
            self._clean = False  # the answer is whole; what follows it is not for anybody
        else:
            self._fail(f"not HTTP: {exc}")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._clean = False
        self._parser = None  # it holds us
        if self._busy and not self._complete and self._failure is None:
            if self._head_done and self._until_close and exc is None:
                self._complete = True
            else:
                words = "the connection was closed before the answer was complete" if exc is None else str(exc)
                self._failure = ConnectionBroken(words)
        self._writable.set()
        self._wake()
        self._on_lost(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools

    def on_message_begin(self) -> None:
        if self._complete:
            self._clean = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        if not self._head_done:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > MAX_HEAD_BYTES:
            self._fail("an answer with endless trailers")

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self.status = self._parser.get_status_code()
        length, coding = self.headers.get("content-length"), self.headers.get("transfer-encoding")
        if self.status < 200:
            self._informational += 1
            if self.status == 101 or length or coding or self._informational > MAX_INFORMATIONAL:
                self._fail(f"an interim answer {self.status} that cannot be")
            return
        if self.status in NO_BODY and (coding or length not in (None, "0")) and self.status != 304:
            self._fail(f"a status {self.status} with a body")
            return
        self._until_close = length is None and coding is None and self.status not in NO_BODY
        self._head_done = True
        self._writable.set()  # whoever is still uploading need not go on
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self._complete or self._failure is not None:
            return
        self._pieces.append(body)
        self._buffered += len(body)
        if self._buffered > HIGH_WATER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        if self._complete:
            return
        if not self._head_done:  # the end of an interim answer; the real one follows
            self.headers = {}
            return
        self._complete = True
        if not self._parser.should_keep_alive():
            self._clean = False
        self._wake()

    # for the transport

    @property
    def quiet(self) -> bool:
        """Whether it may be used again: alive, and nothing has arrived that the loop has not read yet.

        Such bytes belong to no request of ours; once the next request is out, they would pass for its answer.
        """
        return not self.closed and self._clean and not self._poll.poll(0)

    def begin(self) -> None:
        """Take the connection for one exchange."""
        self._reset()
        self._busy = True

    async def send(self, head: bytes, body: bytes | Upload, *, stall_s: float) -> None:
        """Write a request. Stops early when the answer comes early; the connection is not used again then.

        Raises:
            ConnectionBroken, DeadlinePassed (the peer takes nothing for `stall_s`)
        """
        assert self._transport is not None
        if isinstance(body, bytes) and len(body) <= SLICE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            for piece in _slices(body) if isinstance(body, bytes) else body.pieces():
                await self._drained(stall_s)
                if self._head_done or self._failure is not None or self.closed:
                    self._clean = False
                    return
                self._transport.write(piece)
        self._sent = True

    async def _drained(self, stall_s: float) -> None:
        if self._writable.is_set():
            return
        try:
            async with asyncio.timeout(stall_s):
                await self._writable.wait()
        except TimeoutError:
            raise DeadlinePassed("idle", stall_s) from None

    async def head(self, deadline_s: float, phase: str = "first_byte") -> None:
        """Wait until status and headers are there.

        Raises:
            ConnectionBroken, DeadlinePassed
        """
        if not self._head_done and self._failure is None:
            await self._until(lambda: self._head_done, phase, deadline_s)
        if not self._head_done and self._failure is not None:
            raise self._failure

    async def piece(self, deadline_s: float, phase: str = "idle") -> bytes:
        """All of the body that has come since; empty at its end.

        Raises:
            ConnectionBroken, DeadlinePassed
        """
        if not self._pieces and not self._complete and self._failure is None:
            await self._until(lambda: bool(self._pieces) or self._complete, phase, deadline_s)
        if self._pieces:
            piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces.clear()
            self._buffered = 0
            if self._paused:
                self._paused = False
                if self._transport is not None and not self.closed:
                    self._transport.resume_reading()
            return piece
        if self._failure is not None:
            raise self._failure
        return b""

    @property
    def reusable(self) -> bool:
        """The answer has ended cleanly and the next request may follow."""
        ended = self._complete and self._sent and not self._pieces
        return ended and self._clean and not self._until_close and not self.closed

    def rest(self, now_s: float) -> None:
        """Back to idle."""
        self._busy = False
        self.idle_since_s = now_s

    def abort(self) -> None:
        """End it now; nothing that was not sent is sent."""
        self._clean = False
        if self._transport is not None and not self.closed:
            self._transport.abort()

    async def _until(self, ready: Callable[[], bool], phase: str, deadline_s: float) -> None:
        """Wait for `ready` or a failure, for at most `deadline_s`."""
        timer: Any = None
        try:
            while not ready() and self._failure is None:
                waiter = self._waiter = self._loop.create_future()
                timer = timer or self._loop.call_later(deadline_s, self._expire, phase, deadline_s)
                await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _expire(self, phase: str, deadline_s: float) -> None:
        if self._failure is None:
            self._failure = DeadlinePassed(phase, deadline_s)
        self._wake()

    def _fail(self, words: str) -> None:
        if self._failure is None and not self._complete:
            self._failure = ConnectionBroken(words)
        self.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _slices(body: bytes) -> Iterator[memoryview]:
    view = memoryview(body)
    return (view[start : start + SLICE_BYTES] for start in range(0, len(body), SLICE_BYTES))
