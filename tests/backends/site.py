"""A real `uvicorn.Server` with our protocol on a real socket, in the test's own loop, and a client that speaks bytes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from backends.asgi import Receive, Scope, Send
from backends.asgi_http1 import HttpProtocol

App = Callable[[Scope, Receive, Send], Awaitable[None]]
PATIENCE_S = 10


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.drain()

    async def line(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n")

    async def head(self) -> tuple[int, dict[bytes, bytes]]:
        async with asyncio.timeout(PATIENCE_S):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        names = [line.partition(b": ")[0].lower() for line in lines]
        assert len(names) == len(set(names)), lines
        return int(first.split()[1]), {line.partition(b": ")[0].lower(): line.partition(b": ")[2] for line in lines}

    async def answer(self, *, bodiless: bool = False) -> Answer:
        """The next one; `bodiless` for those to HEAD."""
        status, headers = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            if bodiless or status in (204, 304):
                body = b""
            elif b"transfer-encoding" in headers:
                assert b"content-length" not in headers
                body = await self._chunks()
            elif b"content-length" in headers:
                body = await self.reader.readexactly(int(headers[b"content-length"]))
            else:
                body = await self.reader.read()
        return Answer(status, headers, body)

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def rest(self) -> bytes:
        """All that comes until the server ends the connection; a reset counts as an end."""
        pieces = []
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while piece := await self.reader.read(65536):
                    pieces.append(piece)
        return b"".join(pieces)

    def leave(self) -> None:
        self.writer.transport.abort()


@dataclass
class Site:
    """`app` is the test's to give; what the application sees is in `seen`, what it tells by `note` in `notes`."""

    app: App
    listener: socket.socket
    server: Any = None
    seen: list[Any] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    connections: list[Any] = field(default_factory=list)
    """All that there were, oldest first."""
    arrived_bytes: int = 0
    ticks: int = 0
    _stirred: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, what: Any) -> None:
        self.notes.append(what)
        self.stir()

    def stir(self) -> None:
        self._stirred.set()

    async def until(self, truth: Callable[[], bool]) -> None:
        """Wait for something that a connection or the application does."""
        async with asyncio.timeout(PATIENCE_S):
            while not truth():
                self._stirred.clear()
                await self._stirred.wait()

    async def quiet(self) -> None:
        """No connection is left, and no task."""
        await self.until(lambda: not self.server.server_state.connections)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self.server.server_state.tasks, return_exceptions=True)
        assert not self.server.server_state.tasks

    def reset(self, app: App) -> None:
        self.app, self.arrived_bytes, self.ticks = app, 0, 0
        for record in (self.seen, self.notes, self.connections):
            record.clear()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        if self.listener.family == socket.AF_UNIX:
            reader, writer = await asyncio.open_unix_connection(self.listener.getsockname())
        else:
            reader, writer = await asyncio.open_connection(*self.listener.getsockname())
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def watched(base: type[Any], site: Site) -> type[Any]:
    """`base`, telling `site` what happens."""

    class Watched(base):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            site.connections.append(self)
            site.stir()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            site.arrived_bytes += len(data)
            site.stir()

        def pause_writing(self) -> None:
            super().pause_writing()
            site.stir()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            site.stir()

        def _tick(self) -> None:
            super()._tick()
            site.ticks += 1
            site.stir()

    return Watched


@asynccontextmanager
async def serving(
    app: App, *, base: type[Any] = HttpProtocol, unix: Path | None = None, **options: Any
) -> AsyncIterator[Site]:
    if unix is None:
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(unix))
        listener.listen()
    site = Site(app, listener)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await site.app(scope, receive, send)

    defaults = {"lifespan": "off", "log_config": None, "ws": "none", "proxy_headers": False, "server_header": False}
    config = uvicorn.Config(dispatch, http=watched(base, site), **defaults | options)
    site.server = uvicorn.Server(config)
    task = asyncio.create_task(site.server.serve(sockets=[listener]))
    try:
        yield site
    finally:
        site.server.should_exit = True
        async with asyncio.timeout(PATIENCE_S):
            await task
        assert not site.server.server_state.connections
        assert not site.server.server_state.tasks


def post(body: bytes, path: bytes = b"/", *lines: bytes) -> bytes:
    return request(b"POST " + path, b"content-length: %d" % len(body), *lines, body=body)


def request(start: bytes = b"GET /", *lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join((start + b" HTTP/" + version, b"host: here", *lines, b"", body))


def chunked(*pieces: bytes, trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"
