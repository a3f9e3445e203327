"""One file over HTTP, whatever the network does: goes on after a cut, begins anew when the file has changed, gives up with words.

A server that keeps its ETag is believed that the rest belongs to the beginning (`If-Range`); one without is believed only where a
digest will tell. Credentials go to the host they are for, and never to where it redirects.
"""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import httpx

from backends.errors import ModelFileUnusable, ModelFileWrong
from backends.pulling.part import Part, Progress
from backends.pulling.room import check_room, disk_free

PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Between attempts that brought nothing; one that brought something starts over with the first."""
LONGEST_PAUSE_S = 120.0
HOPELESS = 2
"""Attempts that find nobody there, or no such host, when nothing has arrived yet: a machine without a network need not wait."""
TIMEOUT = httpx.Timeout(20.0, read=60.0)

Sleep = Callable[[float], Awaitable[None]]


class Wanted(NamedTuple):
    url: str
    shown: str
    """For messages."""
    headers: Mapping[str, str] = {}
    sha256: str | None = None
    explain: Callable[[httpx.Response], str | None] = lambda _: None
    """What a refusal of this server means, if it says more than its status."""
    digest_of: Callable[[httpx.Response], str | None] = lambda _: None
    """The file's digest, where this server tells it."""


class _Cut(Exception):
    """It may work the next time.

    Args:
        pause_s: that the server asks for.
    """

    def __init__(self, why: str, *, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.pause_s = pause_s


class Download:
    """
    Args:
        say: told why it waits.
        free: bytes free in a folder.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        wanted: Wanted,
        part: Part,
        *,
        progress: Progress,
        say: Callable[[str], None] = lambda words: None,
        sleep: Sleep = asyncio.sleep,
        free: Callable[[Path], int] = disk_free,
    ) -> None:
        self._client = client
        self._wanted = wanted
        self._part = part
        self._progress = progress
        self._say = say
        self._sleep = sleep
        self._free = free
        self._sha256 = wanted.sha256

    async def run(self) -> tuple[str, bool]:
        """All of it, into the part.

        Returns:
            Its digest, and whether somebody had told that beforehand.

        Raises:
            ModelFileUnusable: refused, wrong, no room, or no way to get it. What has arrived is kept, unless it is wrong.
        """
        digest = await self._fetched()
        if self._sha256 not in (None, digest) and self._part.resumed:
            await self._part.restart("")  # the beginning was perhaps of another file
            digest = await self._fetched()
        if self._sha256 not in (None, digest):
            self._part.forget()
            raise ModelFileWrong(
                f"{self._wanted.shown} has the digest sha256={digest}, and sha256={self._sha256} was expected; nothing was installed"
            )
        return digest, self._sha256 is not None

    async def _fetched(self) -> str:
        fruitless = 0
        while True:
            before = self._part.size_bytes
            try:
                await self._attempt()
                return await self._part.finish()
            except (_Cut, httpx.TransportError) as exc:
                self._check_hope(exc)
                fruitless = 0 if self._part.size_bytes > before else fruitless + 1
                await self._pause(exc, fruitless)
            except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as exc:
                raise ModelFileUnusable(f"{self._wanted.shown} cannot be downloaded: {exc}") from None

    def _check_hope(self, exc: Exception) -> None:
        """
        Raises:
            ModelFileUnusable: it would be the same the next time. Other broken answers may be cuts.
        """
        if isinstance(exc, httpx.UnsupportedProtocol) or "location header" in str(exc):
            words = f"its address, or where it redirects to, is none of the web ({exc})"
            raise ModelFileUnusable(f"{self._wanted.shown} cannot be downloaded: {words}") from None

    async def _pause(self, exc: _Cut | httpx.TransportError, fruitless: int) -> None:
        """
        Raises:
            ModelFileUnusable: it is time to give up.
        """
        begun = self._part.size_bytes > 0
        why = str(exc) or type(exc).__name__
        if fruitless >= (HOPELESS if isinstance(exc, httpx.ConnectError) and not begun else len(PAUSES_S)):
            proof = self._part.note.validator or self._sha256  # that the rest belongs to what is here
            later = "pull again later to go on where it stopped" if begun and proof else "pull again later"
            raise ModelFileUnusable(f"{self._wanted.shown} cannot be downloaded: {why}; {later}") from None
        asked_s = exc.pause_s if isinstance(exc, _Cut) else None
        pause_s = PAUSES_S[fruitless] if asked_s is None else min(asked_s, LONGEST_PAUSE_S)
        if pause_s:
            self._say(f"{why}; trying again in {pause_s:g} s")
        await self._sleep(pause_s)

    async def _attempt(self) -> None:
        part, headers = self._part, self._headers()
        async with self._client.stream("GET", self._wanted.url, headers=headers) as response:
            self._sha256 = self._sha256 or self._wanted.digest_of(response)
            total = await self._begin(response, asked="range" in headers)
            if response.status_code == 416:  # all of it was here already
                return
            self._check_room(total)
            self._progress(part.size_bytes, total)
            async for data in response.aiter_raw():
                if not part.size_bytes:
                    self._check_kind(data)
                await part.write(data)
                self._progress(part.size_bytes, total)
        await self._check_size(total)

    def _headers(self) -> dict[str, str]:
        headers = {"accept-encoding": "identity", **self._wanted.headers}
        validator = self._part.note.validator
        if self._part.size_bytes and (validator or self._sha256):
            headers["range"] = f"bytes={self._part.size_bytes}-"
            if validator:
                headers["if-range"] = validator
        return headers

    async def _check_size(self, total: int | None) -> None:
        """
        Raises:
            _Cut
        """
        here = self._part.size_bytes
        if total is not None and here != total:
            if here > total:
                await self._part.restart("")
            raise _Cut(f"{here} bytes came in place of {total}")
        if not here:
            raise _Cut("it is empty")

    async def _begin(self, response: httpx.Response, *, asked: bool) -> int | None:
        """Where the body goes on from. The size of the whole file, if it is told."""
        hops = [*response.history, response]
        if any(a.url.scheme == "https" and b.url.scheme != "https" for a, b in itertools.pairwise(hops)):
            raise ModelFileUnusable(f"{self._wanted.shown} redirects from https to plain http, which is not followed")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ModelFileUnusable(f"{self._wanted.shown} is sent compressed, though that was not asked for")
        if response.status_code == 416 and asked:
            if response.headers.get("content-range") == f"bytes */{self._part.size_bytes}":
                return self._part.size_bytes
            await self._part.restart("")  # it is shorter than what is here
            raise _Cut("it has changed")
        if response.status_code == 206:
            return await self._going_on(response)
        if response.status_code != 200:
            self._refused(response)
        etag = response.headers.get("etag", "")
        await self._part.restart("" if etag.startswith("W/") else etag)
        length = response.headers.get("content-length")
        return int(length) if length is not None and length.isdigit() else None

    async def _going_on(self, response: httpx.Response) -> int | None:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", ""))
        if told is None or int(told[1]) != self._part.size_bytes:
            await self._part.restart("")
            raise _Cut("the server sent another part than it was asked for")
        self._part.resumed = True
        return None if told[2] == "*" else int(told[2])

    def _refused(self, response: httpx.Response) -> None:
        """
        Raises:
            _Cut, ModelFileUnusable
        """
        status, words = response.status_code, self._wanted.explain(response)
        if status in (408, 425, 429) or status >= 500:
            after = response.headers.get("retry-after", "")
            raise _Cut(words or f"the server answers {status}", pause_s=float(after) if after.isdecimal() else None)
        meaning = {
            401: "it wants a login",
            403: "it is not open to everybody",
            404: "there is no such file",
            410: "it is gone",
        }
        raise ModelFileUnusable(
            f"{self._wanted.shown} cannot be downloaded: {words or meaning.get(status, 'the server refuses')} ({status})"
        )

    def _check_room(self, total: int | None) -> None:
        folder = self._part.path.parent
        check_room(self._wanted.shown, (total or 0) - self._part.size_bytes, folder, self._free(folder))

    def _check_kind(self, data: bytes) -> None:
        if not data.startswith(b"GGUF"[: len(data)]):
            began = data[:24].decode("ascii", "replace").strip()
            raise ModelFileUnusable(f"what {self._wanted.shown} sends is no GGUF file: it begins with {began!r}")
