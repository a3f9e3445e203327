"""HTTP/1.1 for an ASGI application: what `uvicorn.Server` puts on each connection (`uvicorn.Config(http=…)`).

uvicorn's own protocol would do; this one costs half of it per request, and adds what a gateway in the open needs: a limit on
heads, a deadline for clients that send theirs by the byte, an end for clients that stop reading, and a callback when the
client leaves in place of a task that waits for it.

States of a connection: idle -> head -> busy (an application task runs) -> idle, or closed. Only the event loop's callbacks
and the `Cycle` of the request in work change them; requests that were pipelined wait in `_waiting`, with reading paused.
Beside ASGI's own keys a scope holds `peer`, its `Cycle`, for `gone` and `on_gone`.
"""

import asyncio
import logging
import select
from collections import deque
from typing import Any, cast

from backends.asgi_cycle import HIGH_WATER_BYTES, STATUS_LINES, Cycle, Headers
from backends.asgi_reader import MAX_HEAD_BYTES, Reader
from backends.asgi_scope import address_of

__all__ = ["MAX_HEAD_BYTES", "HttpProtocol"]

log = logging.getLogger("chasqui")

MAX_WAITING = 64
"""Requests that one connection may pipeline. A single read can hold ten thousand, each a hundred times larger as an object."""


PEER_ENDED = getattr(select, "POLLRDHUP", 0)
"""Where the system has no such word, who leaves while reading is paused is noticed at the next write."""


class HttpProtocol(Reader, asyncio.Protocol):
    """The arguments are what `uvicorn.Server` gives. A subclass says in `refusal` what a bad head is told."""

    tick_s = 5.0
    head_s = 15.0
    """For a whole head, from its first byte."""
    peek_s = 0.5
    stall_s = 60.0
    """For a client that takes nothing of its answer, or goes on sending a body that nobody reads."""

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(app_state)
        if not config.loaded:
            config.load()
        self._app = config.loaded_app
        self._keepalive_s: float = config.timeout_keep_alive
        self._state = server_state
        self._loop: asyncio.AbstractEventLoop = _loop or asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._cycle: Cycle | None = None
        self._waiting: deque[Cycle] = deque()
        self._expires_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._peek: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._unsent_bytes = 0
        """What was still to be written when the client was last looked at."""

    def refusal(self, status: int) -> tuple[bytes, Headers]:
        """The body (JSON) of the answer to a head that no application sees, and headers of its own."""
        return b"{}", []

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._peers = {
            "server": address_of(transport.get_extra_info("sockname")),
            "client": address_of(transport.get_extra_info("peername")),
        }
        self._state.connections.add(self)
        self._expire_in(self._keepalive_s)
        self._timer = self._loop.call_later(self.tick_s, self._tick)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        for timer in (self._timer, self._peek):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        self._parser = None  # it holds us
        self.resume_writing()
        if self._cycle is not None:
            self._cycle.lost()

    def eof_received(self) -> bool:
        """Who ends their side waits for nothing more of ours."""
        self._close()
        if self._cycle is not None:
            self._cycle.lost()
        return False

    def pause_writing(self) -> None:
        assert self._transport is not None
        self._writable = self._loop.create_future()
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self._expire_in(self.stall_s)

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None
            if self._cycle is not None and self._transport is not None and not self._transport.is_closing():
                self._expires_s = None

    # Reader

    def head_begins(self) -> None:
        if self._cycle is None:
            self._expire_in(self.head_s)

    def request_begins(self, scope: dict[str, Any], headers: Headers, *, keep_alive: bool) -> Cycle | None:
        if len(self._waiting) >= MAX_WAITING:
            self.refuse(400)
            return None
        cycle = Cycle(self, scope, headers, keep_alive=keep_alive)
        if self._cycle is None:
            self._start(cycle)
        else:
            self._waiting.append(cycle)
            self.pause_reading()
        return cycle

    def answered_request_ends(self, cycle: Cycle) -> None:
        self._rest(keep_alive=cycle.keep_alive)

    # requests

    def _start(self, cycle: Cycle) -> None:
        self._cycle = cycle
        self._expires_s = None
        if self._writable is not None:  # the client takes nothing of the answer before
            self._expire_in(self.stall_s)
        cycle.task = self._loop.create_task(self._run(cycle))
        self._state.tasks.add(cycle.task)

    async def _run(self, cycle: Cycle) -> None:
        try:
            await self._app(cycle.scope, cycle.receive, cycle.send)
            if not cycle.answered and not cycle.gone and not cycle.broken_off:
                raise RuntimeError("the application returned without a complete answer")
        except Exception:  # the edge of a request's task; whoever is connected must not wait for ever
            log.exception("the application failed to answer %s", cycle.scope["path"][:200])
            if self._cycle is cycle:
                self._close()
        except asyncio.CancelledError:
            if self._cycle is cycle:
                self.abort()
            raise
        finally:
            self._state.tasks.discard(cycle.task)
            cycle.scope = {}  # it holds the cycle

    def answered(self, *, keep_alive: bool) -> None:
        """On to the next request, or to idleness."""
        self._state.total_requests += 1
        self._cycle = None
        if self._transport is None or self._transport.is_closing():
            return
        if self._incoming is None or self._waiting:
            self._rest(keep_alive=keep_alive)
        elif keep_alive:
            self.resume_reading()
            self._expire_in(self.stall_s)
        else:
            self._hang_up()

    def _rest(self, *, keep_alive: bool) -> None:
        if not keep_alive and self._deaf:  # who was refused may still be sending
            self._hang_up()
        elif not keep_alive:
            self._close()
        elif self._waiting:
            self._start(self._waiting.popleft())
        else:
            self._expire_in(self._keepalive_s)
        self.resume_reading()

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
            if self._peek is None and PEER_ENDED:
                self._peek = self._loop.call_later(self.peek_s, self._look_for_the_client)

    def resume_reading(self) -> None:
        if self._transport is not None and not self._waiting and not self._transport.is_closing():
            self._transport.resume_reading()
            if self._peek is not None:
                self._peek.cancel()
                self._peek = None

    def _look_for_the_client(self) -> None:
        """Whose end is not read cannot be heard leaving; the system knows, and is asked."""
        self._peek = None
        if self._transport is None or self._transport.is_closing():
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), PEER_ENDED)
        if poll.poll(0):
            self.abort()
        else:
            self._peek = self._loop.call_later(self.peek_s, self._look_for_the_client)

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
        self._deaf = True
        if self._transport is not None:
            self._transport.close()
            self._expire_in(self.stall_s)  # closing waits for what is still to be written

    def _hang_up(self) -> None:
        """Our side ends. To close while the client still sends would take the answer with it, so that is awaited."""
        self._deaf = True
        self._waiting.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()
            self.resume_reading()
            self._expire_in(self.stall_s)

    def _expire_in(self, seconds: float) -> None:
        self._expires_s = self._loop.time() + seconds

    def _tick(self) -> None:
        assert self._transport is not None
        self._timer = self._loop.call_later(self.tick_s, self._tick)
        if self._expires_s is None or self._loop.time() < self._expires_s:
            return
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes not in (0, self._unsent_bytes):  # slow, but it reads
            self._unsent_bytes = unsent_bytes
            self._expire_in(self.stall_s)
        elif self._in_head and self._cycle is None and not self._deaf:
            self.refuse(408)
        else:
            self.abort()

    def refuse(self, status: int) -> None:
        """Nothing that follows is read; the connection ends when what is whole has been answered."""
        if self._deaf:
            return
        self._deaf = True
        broken, self._incoming = self._incoming, None
        if self._waiting and self._waiting[-1] is broken:
            self._waiting.pop()
            broken = None
        if self._cycle is not None and self._cycle is not broken:
            (self._waiting[-1] if self._waiting else self._cycle).keep_alive = False
        elif broken is not None and broken.begun:
            self._close()
        else:
            self._answer_for_nobody(status)
            self._hang_up()

    def _answer_for_nobody(self, status: int) -> None:
        if self._cycle is not None:
            self._cycle.lost()
            self._cycle = None
        body, headers = self.refusal(status)
        headers = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        lines = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, (b"connection", b"close")))
        self.write(STATUS_LINES[status] + lines + b"\r\n" + body)
