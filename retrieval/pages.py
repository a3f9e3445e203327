"""Web pages of a collection. What they link and redirect to is not ours to trust: hosts are allowed by name, and the address that a
name leads to is judged at the moment of connecting, so that no page brings this process to ask a machine of its own network.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from retrieval.errors import PageRefused, PageUnavailable

MAX_REDIRECTS = 5
TOTAL_S = 30.0
CONNECT_S = 10.0
GONE = (400, 401, 403, 404, 405, 406, 410, 414, 451)

NOT_PUBLIC = [
    ipaddress.ip_network(one)
    for one in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "fec0::/10",
        "5f00::/16",
        "3fff::/20",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
    )
]
"""What Python's own judgement lets through: relays, translations to IPv4, addresses of other times."""

EXTENSIONS = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "application/json": ".json",
    "application/pdf": ".pdf",
}


class Fetched(NamedTuple):
    name: str
    """Its address, with the extension of what it is."""
    data: bytes


class Pages:
    """
    Args:
        urls: of the collection; their hosts are allowed as far as they are public.
        allow_hosts: names (`wiki.example.org`, `*.example.org`, `10.0.0.7:8080`) that are allowed beside them; those without
            a `*` may be private.
    """

    def __init__(self, urls: Iterable[str], allow_hosts: Iterable[str], *, max_bytes: int) -> None:
        self._hosts = [place_of(url)[0] for url in urls]
        self._allowed = [one.lower() for one in allow_hosts]
        self._max_bytes = max_bytes

    async def fetch(self, url: str) -> Fetched:
        """
        Raises:
            PageRefused: it must not be fetched, or is not there.
            PageUnavailable: it may be there again.
        """
        asked = url
        timeout = aiohttp.ClientTimeout(total=TOTAL_S, connect=CONNECT_S)
        try:
            for _ in range(MAX_REDIRECTS + 1):
                private = self._check(url)
                connector = aiohttp.TCPConnector(resolver=_Resolver(url, private=private), force_close=True)
                async with (
                    aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
                    session.get(url, allow_redirects=False, headers={"user-agent": "chasqui"}) as answer,
                ):
                    if answer.status not in (301, 302, 303, 307, 308):
                        return await self._read(asked, answer)
                    url = urljoin(url, answer.headers.get("location", ""))
        except (aiohttp.InvalidURL, ValueError) as exc:
            raise PageRefused(f"{asked[:200]} is no address of a web page: {exc}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise _refusal(exc) or PageUnavailable(f"{asked} does not answer: {exc or type(exc).__name__}") from None
        raise PageRefused(f"{asked} redirects more than {MAX_REDIRECTS} times")

    def _check(self, url: str) -> bool:
        """Whether its host may be private.

        Raises:
            PageRefused
        """
        if urlsplit(url).scheme not in ("http", "https"):
            raise PageRefused(f"{url[:200]} is no address of a web page")
        host, place = place_of(url)
        if "*" not in host and (host in self._allowed or place in self._allowed):
            return True
        if host not in self._hosts and not any(fnmatchcase(host, one) for one in self._allowed):
            raise PageRefused(f"the host of {url[:200]} is not allowed; name it in `allow_hosts` if it should be")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if not is_public(address):
            raise PageRefused(
                f"{url[:200]} is an address of a private network; name it in `allow_hosts` if it should be read"
            )
        return False

    async def _read(self, asked: str, answer: aiohttp.ClientResponse) -> Fetched:
        if answer.status in GONE:
            raise PageRefused(f"{asked} answers {answer.status}")
        if answer.status != 200:
            raise PageUnavailable(f"{asked} answers {answer.status}")
        kind = answer.content_type
        if kind not in EXTENSIONS:
            raise PageRefused(f"{asked} is {kind}, which is not read here")
        data = bytearray()
        async for piece in answer.content.iter_chunked(65_536):
            data += piece
            if len(data) > self._max_bytes:
                raise PageRefused(f"{asked} is larger than {self._max_bytes / 2**20:g} MB (files.max_mb)")
        path = urlsplit(asked).path
        extension = EXTENSIONS[kind]
        if kind == "text/plain" and path.endswith((".md", ".csv", ".tsv", ".rst")):
            extension = path[path.rindex(".") :]
        name = asked if asked.endswith(extension) else asked + extension
        return Fetched(name, _as_utf8(bytes(data), answer.charset) if extension == ".html" else bytes(data))


def _as_utf8(data: bytes, charset: str | None) -> bytes:
    """What the header says counts before what the page says."""
    try:
        return data.decode(charset, "replace").encode() if charset is not None else data
    except LookupError:
        return data


class _Resolver(AbstractResolver):
    """Names to addresses, of which none may be private."""

    def __init__(self, url: str, *, private: bool) -> None:
        self._url = url
        self._private = private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        addresses: list[ResolveResult] = []
        for kind, _, proto, _, place in found:
            if not self._private and not is_public(ipaddress.ip_address(str(place[0]))):
                refused = PageRefused(f"{self._url[:200]} leads to an address of a private network")
                raise OSError("refused") from refused
            addresses.append(
                ResolveResult(hostname=host, host=str(place[0]), port=port, family=kind, proto=proto, flags=0)
            )
        return addresses

    async def close(self) -> None:
        pass


def _refusal(exc: BaseException) -> PageRefused | None:
    """Of our resolver, however deep the client has wrapped it."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, PageRefused):
        cause = cause.__cause__
    return cause


def is_public(address: Any) -> bool:
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if mapped is not None:
        return is_public(mapped)
    odd = any(address in network for network in NOT_PUBLIC if network.version == address.version)
    return bool(address.is_global and not address.is_multicast and not address.is_reserved and not odd)


def place_of(url: str) -> tuple[str, str]:
    """(host, host:port), in lower case: as the client will read them, which knows more spellings than one."""
    try:
        parts = URL(url)
        host, port = (parts.host or "").lower(), parts.port or 0
    except ValueError:
        return "", ""
    return host, f"{host}:{port}"
