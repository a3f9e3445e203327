"""HTTP by aiohttp: for what our own client does not do, HTTP proxies. Nothing of the library leaves this module."""

import asyncio
import math
import os
import ssl
from collections.abc import AsyncIterator, Mapping

import aiohttp

from backends.settings import Timeouts
from backends.transport import ConnectFailed, ConnectionBroken, DeadlinePassed, Reply, Request, Upload


class AiohttpTransport:
    """One long-lived session for one upstream; over a Unix socket where `socket_path` is given.

    The session is made at the first request, because it belongs to the running loop. It keeps no cookies, follows no
    redirects and has no limit of its own on connections.
    """

    def __init__(
        self,
        base_url: str,
        *,
        socket_path: str | None = None,
        keepalive_s: float = 15.0,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._tls = tls
        self._proxy = proxy
        self._socket_path = socket_path
        self._keepalive_s = keepalive_s
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: Request) -> Reply:
        timeouts = request.timeouts
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s)
        loop = asyncio.get_running_loop()
        total_s = math.inf if request.total_s is None else request.total_s
        until_s = loop.time() + total_s
        head_s = timeouts.connect_s + timeouts.first_byte_s
        try:
            async with asyncio.timeout(min(head_s, total_s)):
                response = await self._opened().request(
                    request.method,
                    self.base_url + request.path,
                    data=request.body or None if isinstance(request.body, bytes) else _sent(request.body),
                    headers=_with_length(request),
                    allow_redirects=False,
                    proxy=self._proxy,
                    ssl=self._tls or True,
                    timeout=timeout,
                )
        except aiohttp.ConnectionTimeoutError:
            raise DeadlinePassed("connect", timeouts.connect_s) from None
        except TimeoutError:
            if total_s <= head_s:  # not by the clock, which may be a little behind the timer
                raise DeadlinePassed("total", total_s) from None
            raise DeadlinePassed("first_byte", timeouts.first_byte_s) from None
        except aiohttp.ClientHttpProxyError as exc:
            raise ConnectFailed(f"the proxy refused: {exc.status} {exc.message}") from None
        except aiohttp.ClientConnectorError as exc:
            raise ConnectFailed(_connect_reason(exc.os_error)) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise ConnectionBroken(_reason(exc)) from exc
        return AiohttpReply(response, timeouts, total_s=total_s, until_s=until_s)

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
    def __init__(self, response: aiohttp.ClientResponse, timeouts: Timeouts, *, total_s: float, until_s: float) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._response = response
        self._waits = {False: ("idle", timeouts.idle_s), True: ("first_byte", timeouts.first_byte_s)}
        self._total_s = total_s
        self._until_s = until_s

    async def piece(self, *, first: bool = False) -> bytes:
        phase, wait_s = self._waits[first]
        left_s = self._until_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(wait_s, left_s)):
                return await self._response.content.readany()
        except TimeoutError:
            if left_s <= wait_s:
                raise DeadlinePassed("total", self._total_s) from None
            raise DeadlinePassed(phase, wait_s) from None
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise ConnectionBroken(_reason(exc)) from exc

    def close(self) -> None:
        # Releases the connection to the pool when the body was read to its end, closes it otherwise.
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _connect_reason(error: OSError) -> str:
    """Without addresses, which the library's words hold: a client may read it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) or not error.errno:
        return type(error).__name__
    return os.strerror(error.errno)


def _with_length(request: Request) -> Mapping[str, str]:
    """The library cannot know the length of what is not in memory."""
    if isinstance(request.body, bytes):
        return request.headers
    return {**request.headers, "content-length": str(request.body.size_bytes)}


async def _sent(upload: Upload) -> AsyncIterator[bytes]:
    for piece in upload.pieces():
        yield piece
