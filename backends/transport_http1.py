"""HTTP by our own client (`http1.py`): one pool of connections for one upstream, over TCP, TLS or a Unix socket.

A connection is used again only after a clean end. A request whose bytes may have been acted on is never sent twice: when
a kept connection turns out to be dead, that is a `ConnectionBroken` like any other, and retrying is a policy's decision.
"""

import asyncio
import os
import socket
import ssl
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from backends.http1 import Connection
from backends.settings import Timeouts
from backends.transport import ConnectFailed, ConnectionBroken, DeadlinePassed, Request

INFLATE_BYTES = 256 * 1024
"""Unpacked at a time, so that a small answer cannot become a large one in one step."""


class Http1Transport:
    """
    Args:
        base_url: `http://host:port/prefix` or https; the host also goes into the `host` header.
        socket_path: connect here instead of to the host.
        tls: for https; None: the system's trust store.
        keepalive_s: how long an idle connection is kept.
    """

    def __init__(
        self,
        base_url: str,
        *,
        socket_path: str | None = None,
        tls: ssl.SSLContext | None = None,
        keepalive_s: float = 15.0,
    ) -> None:
        self.base_url = base_url
        url = urlsplit(base_url)
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._prefix = url.path.rstrip("/")
        self._authority = url.netloc.rpartition("@")[2]
        self._secure = url.scheme == "https"
        self._tls = tls
        self._socket_path = socket_path
        self._keepalive_s = keepalive_s
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def send(self, request: Request) -> "Http1Reply":
        timeouts = request.timeouts
        head = self._head(request)
        total = _Total(request.total_s)
        connection = self._kept() or await self._connected(timeouts.connect_s)
        connection.begin()
        try:
            await connection.send(head, request.body, stall_s=timeouts.idle_s)
            await connection.head(*total.at_most("first_byte", timeouts.first_byte_s))
        except BaseException:
            connection.abort()
            raise
        return Http1Reply(connection, self, timeouts, total)

    def _head(self, request: Request) -> bytes:
        lines = [f"{request.method} {self._prefix}{request.path} HTTP/1.1", f"host: {self._authority}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        body = request.body
        if body or request.method != "GET":
            lines.append(f"content-length: {len(body) if isinstance(body, bytes) else body.size_bytes}")
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or "\0" in text:
            raise ConnectFailed("a header that is to be sent holds a line end")
        return f"{text}\r\n\r\n".encode("latin-1", "replace")

    def _kept(self) -> Connection | None:
        """The connection that was used last; the chance that it still lives is best."""
        while self._idle:
            connection = self._idle.pop()
            if connection.quiet:
                return connection
            connection.abort()
        return None

    async def _connected(self, connect_s: float) -> Connection:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            connection = Connection(loop, self._lost)
            self._all.add(connection)
            return connection

        try:
            async with asyncio.timeout(connect_s):
                if self._socket_path is not None:
                    _, connection = await loop.create_unix_connection(make, self._socket_path)
                else:
                    if self._secure and self._tls is None:
                        self._tls = ssl.create_default_context()  # reads the trust store, so once
                    tls = self._tls if self._secure else None
                    _, connection = await loop.create_connection(make, self._host, self._port, ssl=tls)
        except TimeoutError:
            raise DeadlinePassed("connect", connect_s) from None
        except (OSError, ssl.CertificateError, UnicodeError) as exc:
            raise ConnectFailed(_reason(exc)) from exc
        return connection

    def give_back(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        connection.rest(loop.time())
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._keepalive_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle for too long. The list is in order of age."""
        self._sweeper = None
        oldest_s = loop.time() - self._keepalive_s
        while self._idle and self._idle[0].idle_since_s <= oldest_s:
            self._idle.pop(0).abort()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_since_s + self._keepalive_s, self._sweep, loop)

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def aclose(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()


class _Total:
    """The deadline of a whole exchange, beside which the others may be shorter."""

    def __init__(self, total_s: float | None) -> None:
        self._total_s = total_s
        self._until_s = asyncio.get_running_loop().time() + total_s if total_s is not None else 0.0

    def at_most(self, phase: str, deadline_s: float) -> tuple[float, str]:
        """Seconds that one wait may take, and the name of the deadline that passes then.

        Raises:
            DeadlinePassed: the whole one has.
        """
        if self._total_s is None:
            return deadline_s, phase
        left_s = self._until_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlinePassed("total", self._total_s)
        return (deadline_s, phase) if deadline_s < left_s else (left_s, "total")


class Http1Reply:
    def __init__(self, connection: Connection, transport: Http1Transport, timeouts: Timeouts, total: _Total) -> None:
        self.status: int = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection
        self._transport = transport
        self._waits = {False: ("idle", timeouts.idle_s), True: ("first_byte", timeouts.first_byte_s)}
        self._total = total
        self._closed = False
        self._packed = b""
        encoding = self.headers.get("content-encoding")
        self._inflate = _inflater(encoding) if encoding is not None else None

    async def piece(self, *, first: bool = False) -> bytes:
        wait = self._waits[first]
        if self._inflate is None:
            return await self._connection.piece(*self._total.at_most(*wait))
        while packed := self._packed or await self._connection.piece(*self._total.at_most(*wait)):
            try:
                out: bytes = self._inflate.decompress(packed, INFLATE_BYTES)
            except zlib.error as exc:
                raise ConnectionBroken(f"damaged compression: {exc}") from None
            self._packed = self._inflate.unconsumed_tail
            if out:
                return out
        if not self._inflate.eof:
            raise ConnectionBroken("the compressed answer ended early")
        return b""

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._connection.reusable:
            self._transport.give_back(self._connection)
        else:
            self._connection.abort()


def _reason(exc: Exception) -> str:
    """Without addresses: a client may read it."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError | socket.gaierror):
        return exc.strerror or type(exc).__name__
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return type(exc).__name__


def _inflater(encoding: str) -> Any:
    """A decompressor for what some servers send though they were asked not to."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # finds out which of the two it is
        case other:
            raise ConnectionBroken(f"an answer in the encoding '{other[:40]}', which was not asked for")
