"""One HTTP request and its answer, as an ASGI application sees them; `asgi_http1` owns the connection they travel on."""

import asyncio
import http
from collections.abc import Callable, Mapping
from typing import Any, Protocol

HIGH_WATER_BYTES = 256 * 1024
PIECE_BYTES = 64
"""What an object costs beside its content: a body may come by the byte."""

PHRASES = {int(status): status.phrase for status in http.HTTPStatus}
STATUS_LINES = {status: f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode() for status in range(100, 600)}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Headers = list[tuple[bytes, bytes]]


class Line(Protocol):
    """What a cycle needs of its connection."""

    @property
    def default_headers(self) -> Headers: ...

    @property
    def writable(self) -> "asyncio.Future[None] | None":
        """Something to wait for before more is written, where the client is slow."""
        ...

    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def answered(self, *, keep_alive: bool) -> None:
        """The answer's end has been written."""
        ...


class Cycle:
    """One request and its answer. `receive` and `send` are the application's."""

    def __init__(self, line: Line, scope: dict[str, Any], headers: Headers, *, keep_alive: bool) -> None:
        self.scope = scope
        self.task: asyncio.Task[None] | None = None
        self.gone = False
        self.answered = False
        self.broken_off = False
        self.keep_alive = keep_alive
        scope["peer"] = self
        self._line = line
        self.fields = dict(headers)
        """The request's headers by name; of several of one name the last."""
        expected = self.fields.get(b"expect")
        self._expects_continue = (
            expected is not None and expected.lower() == b"100-continue" and scope["http_version"] == "1.1"
        )
        """The client waits for a word before it sends the body."""
        self._pieces: list[bytes] = []
        self._buffered = 0
        self._complete = False
        self._delivered = False
        self._waiters: list[asyncio.Future[None]] = []
        self._callback: Callable[[], None] | None = None
        self._head: bytes | None = None
        self._status = 0
        self._silent = False
        self._chunked = False
        self._left: int | None = None
        """Bytes of the body still to come, where its length was announced."""

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` when the client leaves before its answer is complete; None: nobody wants to know any more."""
        self._callback = callback
        if self.gone and callback is not None:
            callback()

    @property
    def body_arrived(self) -> bool:
        """All of the request is here: the next `receive` has it and need not wait."""
        return self._complete

    @property
    def begun(self) -> bool:
        """Something of the answer has been written."""
        return self._status != 0 and self._head is None

    def break_off(self) -> None:
        """End the connection in the middle of the answer."""
        self.broken_off = True
        self._line.abort()

    # from the connection

    def feed(self, body: bytes) -> None:
        if self.answered:
            return  # nobody reads it any more
        self._expects_continue = False
        self._pieces.append(body)
        self._buffered += len(body) + PIECE_BYTES
        if self._buffered > HIGH_WATER_BYTES:
            self._line.pause_reading()
        self._wake()

    def fed(self) -> None:
        self._complete = True
        self._wake()

    def lost(self) -> None:
        if self.answered or self.gone:
            return
        self.gone = True
        self._wake()
        if self._callback is not None:
            self._callback()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ASGI

    async def receive(self) -> dict[str, Any]:
        while True:
            if self.gone or self.answered:
                return {"type": "http.disconnect"}
            if self._pieces or (self._complete and not self._delivered):
                return self._request()
            if self._expects_continue and not self._complete:
                self._expects_continue = False
                self._line.write(CONTINUE)
            self._line.resume_reading()
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)

    def _request(self) -> dict[str, Any]:
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered = 0
        self._delivered = self._complete
        return {"type": "http.request", "body": body, "more_body": not self._complete}

    async def send(self, message: Any) -> None:
        if (writable := self._line.writable) is not None:
            await asyncio.shield(writable)  # others wait for it too
        if self.gone:
            return
        if self._status == 0:
            self._begin(message)
        elif not self.answered:
            if message["type"] != "http.response.body":
                raise RuntimeError(f"{message['type']} inside the answer")
            self._write(message.get("body", b""), last=not message.get("more_body", False))
            if not self.answered and (writable := self._line.writable) is not None:
                await asyncio.shield(writable)  # before more is fetched for a client that does not take this
        else:
            raise RuntimeError(f"{message['type']} after the answer's end")

    async def send_whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """An answer in one piece, for applications that know whose scope they have: `send` twice costs twice as much."""
        if self._status or not self._complete or not self.keep_alive or self.scope["method"] == "HEAD":
            raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
            raw.append((b"content-length", b"%d" % len(body)))
            await self.send({"type": "http.response.start", "status": status, "headers": raw})
            await self.send({"type": "http.response.body", "body": body})
            return
        if (writable := self._line.writable) is not None:
            await asyncio.shield(writable)
        if self.gone:
            return
        self._status = status
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode("latin-1", "replace")
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
            raise RuntimeError("a header of the answer holds a line end")
        default = b"".join([b"%b: %b\r\n" % pair for pair in self._line.default_headers])
        length = b"content-length: %d\r\n" % len(body)
        self._line.write(STATUS_LINES[status] + default + length + lines + b"\r\n" + body)
        self.answered = True
        self._wake()
        self._line.answered(keep_alive=True)

    def _begin(self, message: Any) -> None:
        """The head waits for the first piece of the body, so that both go out in one write."""
        status: int = message["status"]
        headers: Headers = [*self._line.default_headers, *message.get("headers", ())]
        known = dict(headers)
        length = known.get(b"content-length")
        self._silent = self.scope["method"] == "HEAD"
        bodiless = self._silent or status in (204, 304)
        self._chunked = False
        self._left = 0 if bodiless else int(length) if length is not None else None
        if self._left is None:
            self._stream(headers, known)
        if self._expects_continue and not self._complete:  # whether a body follows now is the client's choice
            self.keep_alive = self._expects_continue = False
        says_close = b"close" in known.get(b"connection", b"").lower()
        self.keep_alive = self.keep_alive and not says_close
        if not self.keep_alive and not says_close:
            headers.append((b"connection", b"close"))
        lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
            raise RuntimeError("a header of the answer holds a line end")
        self._head = STATUS_LINES[status] + lines + b"\r\n"
        self._status = status

    def _stream(self, headers: Headers, known: dict[bytes, bytes]) -> None:
        """An answer whose length nobody has said comes in chunks; HTTP/1.0 has only the connection's end."""
        if self.scope["http_version"] != "1.1":
            self.keep_alive = False
            return
        self._chunked = True
        if b"transfer-encoding" not in known:
            headers.append((b"transfer-encoding", b"chunked"))

    def _write(self, body: bytes, *, last: bool) -> None:
        data = self._framed(body, last=last)
        if self._head is not None:
            data, self._head = self._head + data, None
        if data:
            self._line.write(data)
        if last:
            self.answered = True
            self._wake()
            self._line.answered(keep_alive=self.keep_alive)

    def _framed(self, body: bytes, *, last: bool) -> bytes:
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            return data + b"0\r\n\r\n" if last else data
        if self._left is None:
            return body
        if self._silent:
            return b""
        self._left -= len(body)
        if self._left < 0 or (last and self._left):
            raise RuntimeError("the answer's body is not as long as was announced")
        return body
