"""HTTP/1.1 for an ASGI application: what `uvicorn.Server` puts on each connection (`uvicorn.Config(http=…)`).

uvicorn's own protocol would do; this one costs half of it per request, and adds what a gateway in the open needs: a limit on
heads, a deadline for clients that send theirs by the byte, an end for clients that stop reading, and a callback when the
client leaves in place of a task that waits for it.

States of a connection: idle -> head -> busy (an application task runs) -> idle, or closed. Only the event loop's callbacks
and the `Cycle` of the request in work change them; requests that were pipelined wait in `_waiting`, with reading paused.
Beside ASGI's own keys a scope holds `peer`, its `Cycle`, for `gone` and `on_gone`.
"""

import asyncio
import contextlib
import logging
import urllib.parse
from collections import deque
from typing import Any, cast

import httptools

from backends.asgi_cycle import HIGH_WATER_BYTES, STATUS_LINES, Cycle, Headers

log = logging.getLogger("chasqui")

MAX_HEAD_BYTES = 64 * 1024
TICK_S = 5.0
HEAD_S = 15.0
"""For a whole head, from its first byte."""
STALL_S = 60.0
"""For a client that takes nothing of its answer, or goes on sending a body that nobody reads."""


class HttpProtocol(asyncio.Protocol):
    """The arguments are what `uvicorn.Server` gives. A subclass says in `refusal` what a bad head is told."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._keepalive_s: float = config.timeout_keep_alive
        self._state = server_state
        self._app_state = app_state
        self._loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._cycle: Cycle | None = None
        self._waiting: deque[Cycle] = deque()
        self._expires_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._peers: dict[str, Any] = {}
        self._deaf = False
        """Nothing that arrives is read any more."""
        self._url = b""
        self._headers: Headers = []
        self._in_head = False
        self._head_bytes = 0
        """What arrived while a head was being read, at most."""
        self._incoming: Cycle | None = None
        """Whose body is arriving; it may have been answered already."""

    def refusal(self, status: int) -> tuple[bytes, Headers]:
        """The body (JSON) of the answer to a head that no application sees, and headers of its own."""
        return b"{}", []

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._peers = {
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
        }
        self._state.connections.add(self)
        self._expires_s = self._loop.time() + self._keepalive_s
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()
        self.resume_writing()
        if self._cycle is not None:
            self._cycle.lost()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer to speak another protocol (Java's client makes one) is not taken up; the request counts as it is.
            if rest := data[upgrade.args[0] :]:
                self.data_received(rest)
            return
        except httptools.HttpParserError as exc:
            if isinstance(exc, httptools.HttpParserCallbackError) and not self._deaf:
                raise
            self._misunderstood()
            return
        if not self._in_head:
            self._head_bytes = 0
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431)

    def _misunderstood(self) -> None:
        if self._deaf:
            return
        if self._cycle is None or self._incoming is not None:
            self._refuse(400)
        else:  # a whole request is being answered; what came behind it is none
            self._deaf = True
            self._cycle.keep_alive = False

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._expires_s = self._loop.time() + STALL_S

    def resume_writing(self) -> None:
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None
            self._expires_s = None if self._cycle is not None else self._loop.time() + self._keepalive_s

    # httptools

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._in_head = True
        if self._cycle is None:
            self._expires_s = self._loop.time() + HEAD_S

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what trails a body comes too late to be believed
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_bytes > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            self._refuse(431)
            raise ValueError("head too large")  # the only way to stop the parser
        scope = self._scope()
        keep_alive = scope["http_version"] != "1.0" and self._parser.should_keep_alive()
        cycle = self._incoming = Cycle(self, scope, self._headers, keep_alive=keep_alive)
        if self._cycle is None:
            self._start(cycle)
        else:
            self._waiting.append(cycle)
            self.pause_reading()

    def _size_of_head(self) -> int:
        return len(self._url) + sum(len(name) + len(value) for name, value in self._headers)

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None:
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return
        incoming.fed()
        if incoming.answered:
            self._rest(keep_alive=incoming.keep_alive)

    # requests

    def _scope(self) -> dict[str, Any]:
        path, _, query = self._url.partition(b"?")
        if not path.startswith(b"/"):  # a proxy's form, or `*`
            url = httptools.parse_url(self._url) if self._url != b"*" else None
            path, query = (url.path or b"/", url.query or b"") if url is not None else (b"*", b"")
        text = path.decode("ascii", "replace")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": urllib.parse.unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query.partition(b"#")[0],
            "root_path": "",
            "headers": self._headers,
            "state": self._app_state.copy(),
            **self._peers,
        }

    def _start(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._expires_s = None
        cycle.task = self._loop.create_task(self._run(cycle))
        self._state.tasks.add(cycle.task)

    async def _run(self, cycle: Cycle) -> None:
        try:
            await self._app(cycle.scope, cycle.receive, cycle.send)
            if not cycle.answered and not cycle.gone:
                raise RuntimeError("the application returned without a complete answer")
        except Exception:  # the edge of a request's task; whoever is connected must not wait for ever
            log.exception("the application failed to answer %s", cycle.scope["path"][:200])
            self.abort()
        except asyncio.CancelledError:
            if not cycle.answered:
                self.abort()
            raise
        finally:
            self._state.tasks.discard(cycle.task)

    def answered(self, *, keep_alive: bool) -> None:
        """On to the next request, or to idleness."""
        self._state.total_requests += 1
        self._cycle = None
        if self._transport is None or self._transport.is_closing():
            return
        if self._incoming is not None and not self._waiting:
            # The client is still sending. Closing now would take the answer with it, so the rest is read, for a while.
            self.resume_reading()
            self._expires_s = self._loop.time() + STALL_S
        else:
            self._rest(keep_alive=keep_alive)

    def _rest(self, *, keep_alive: bool) -> None:
        if not keep_alive:
            self._close()
        elif self._waiting:
            self._start(self._waiting.popleft())
        else:
            self.resume_reading()
            self._expires_s = self._loop.time() + self._keepalive_s

    # writing, reading, ending

    @property
    def default_headers(self) -> Headers:
        headers: Headers = self._state.default_headers
        return headers

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    @property
    def writable(self) -> "asyncio.Future[None] | None":
        return self._writable

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._waiting and not self._transport.is_closing():
            self._transport.resume_reading()

    def shutdown(self) -> None:
        """uvicorn: the server stops. Who has a request in work may finish it."""
        if self._cycle is None:
            self._close()
        else:
            self._cycle.keep_alive = False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._expires_s = self._loop.time() + STALL_S  # closing waits for what is still to be written

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        if self._expires_s is None or self._loop.time() < self._expires_s:
            return
        if self._in_head and self._cycle is None and not self._deaf:
            self._refuse(408)
        else:
            self.abort()

    def _refuse(self, status: int) -> None:
        """An answer to what no application sees; the connection ends."""
        self._deaf = True
        if self._cycle is not None:  # an answer may be under way, and a second one would be taken for a part of it
            self.abort()
            return
        body, headers = self.refusal(status)
        headers = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        lines = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, (b"connection", b"close")))
        self.write(STATUS_LINES[status] + lines + b"\r\n" + body)
        self._close()


def _address(name: Any) -> tuple[str, int | None] | None:
    """ASGI's form of a socket's name; a Unix socket has its path, or nothing."""
    with contextlib.suppress(TypeError, IndexError):
        if isinstance(name, tuple):
            return str(name[0]), int(name[1])
        return (str(name), None) if name else None
    return None
