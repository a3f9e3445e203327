"""HTTP to an engine, as bytes. The seam behind which clients are exchanged; nothing above it knows aiohttp."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from backends.settings import Timeouts


class TransportError(Exception):
    """Base of what a transport raises. Nothing of the foreign library leaves it."""


class ConnectFailed(TransportError):
    """No byte of the request can have been acted on."""


class ConnectionBroken(TransportError):
    """The connection ended or talked nonsense after the request was, or may have been, sent."""


class DeadlinePassed(TransportError):
    def __init__(self, phase: str, deadline_s: float) -> None:
        super().__init__(f"{phase} deadline of {deadline_s:g} s")
        self.phase = phase
        self.deadline_s = deadline_s


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Appended to the base URL."""
    headers: Mapping[str, str]
    body: bytes
    timeouts: Timeouts


class Reply(Protocol):
    """An answer whose head has come. Close it on every path: closing before the end closes the connection."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body, piece by piece, as it comes.

        Raises:
            ConnectionBroken: it ended early.
            DeadlinePassed: idle.
        """
        ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    async def send(self, request: Request) -> Reply:
        """
        Raises:
            ConnectFailed, ConnectionBroken, DeadlinePassed
        """
        ...

    async def aclose(self) -> None: ...


class AiohttpTransport:
    """One long-lived session for one upstream; over a Unix socket where `socket_path` is given.

    The session is made at the first request, because it belongs to the running loop. It keeps no cookies, follows no
    redirects and has no limit of its own on connections.
    """

    def __init__(self, base_url: str, *, socket_path: str | None = None, keepalive_s: float = 15.0) -> None:
        self._base_url = base_url.rstrip("/")
        self._socket_path = socket_path
        self._keepalive_s = keepalive_s
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: Request) -> Reply:
        timeouts = request.timeouts
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s)
        try:
            async with asyncio.timeout(timeouts.connect_s + timeouts.first_byte_s):
                response = await self._opened().request(
                    request.method,
                    self._base_url + request.path,
                    data=request.body or None,
                    headers=request.headers,
                    allow_redirects=False,
                    timeout=timeout,
                )
        except aiohttp.ConnectionTimeoutError:
            raise DeadlinePassed("connect", timeouts.connect_s) from None
        except TimeoutError:
            raise DeadlinePassed("first_byte", timeouts.first_byte_s) from None
        except aiohttp.ClientConnectorError as exc:
            raise ConnectFailed(exc.os_error.strerror or type(exc.os_error).__name__) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise ConnectionBroken(_reason(exc)) from exc
        return AiohttpReply(response, idle_s=timeouts.idle_s)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self._socket_path:
                connector = aiohttp.UnixConnector(self._socket_path, limit=0, keepalive_timeout=self._keepalive_s)
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keepalive_s)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent",),
                read_bufsize=2**18,
            )
        return self._session


class AiohttpReply:
    def __init__(self, response: aiohttp.ClientResponse, *, idle_s: float) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._response = response
        self._idle_s = idle_s

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while True:
                async with asyncio.timeout(self._idle_s):
                    piece = await content.readany()
                if not piece:
                    return
                yield piece
        except TimeoutError:
            raise DeadlinePassed("idle", self._idle_s) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise ConnectionBroken(_reason(exc)) from exc

    async def aclose(self) -> None:
        # Releases the connection to the pool when the body was read to its end, closes it otherwise.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
