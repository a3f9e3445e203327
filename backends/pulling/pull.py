"""The story of one pull: a source becomes a whole, verified file on the shelf, or nothing changes."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from backends.errors import ModelFileUnusable, ModelFileWrong
from backends.gguf_head import check_whole
from backends.pulling import hub
from backends.pulling.download import TIMEOUT, Download, Sleep, Wanted
from backends.pulling.part import Part, Progress
from backends.pulling.shelf import Origin, Shelf
from backends.pulling.source import Source, parse_source

Say = Callable[[str], None]


class Pull:
    """
    Args:
        progress: told for each file, again and again, how much of it is here.
        say: told what people should know.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        progress: Callable[[str], Progress] = lambda name: lambda here, total: None,
        say: Say = lambda words: None,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._shelf = shelf
        self._progress = progress
        self._say = say
        self._sleep = sleep
        self._clock = clock

    async def run(self, text: str, *, name: str | None = None, replace: bool = False, beside: bool = False) -> Path:
        """
        Args:
            text: the source.
            name: of the file here; without one, as it is called there.
            replace: a file of that name gives way, also one that came from there: it may have changed.
            beside: it stays, and this one gets a name of its own.

        Returns:
            The file, the first one of a split model.

        Raises:
            ModelFileUnusable: with words that say what to do.
        """
        source = parse_source(text)
        sources = source.parts()
        if len(sources) > 1 and name not in (None, source.name):
            raise ModelFileUnusable(
                f"{source.name} is one of {len(sources)} files that find each other by their names; leave --name out"
            )
        if beside and len(sources) == 1 and self._is_taken(source):
            name = f"{source.name.removesuffix('.gguf')}-{source.key[:8]}.gguf"
        # The first file is what a configuration names: it comes last, so that it is there only when all are.
        for one in sources[1:]:
            await self._one(one, one.name, replace=replace)
        return await self._one(sources[0], name or sources[0].name, replace=replace)

    def _is_taken(self, source: Source) -> bool:
        target, origin = self._shelf.path(source.name), self._shelf.origin(source.name)
        return target.exists() and not (origin is not None and self._shelf.is_from(source, target, origin))

    async def _one(self, source: Source, name: str, *, replace: bool) -> Path:
        target = self._shelf.path(name)
        try:
            async with self._shelf.claimed(name, say=self._say):
                if self._is_there(source, name, replace=replace):
                    return target
                return await self._fetched(source, name)
        except OSError as exc:
            raise ModelFileUnusable(f"{self._shelf.folder} cannot be used: {exc.strerror or exc}") from exc

    def _is_there(self, source: Source, name: str, *, replace: bool) -> bool:
        target, origin = self._shelf.path(name), self._shelf.origin(name)
        if replace or not target.exists():
            return False
        if origin is not None and self._shelf.is_from(source, target, origin):
            self._say(f"{name} is there already")
            return True
        came = f"came from {origin.source}" if origin is not None else "was put there by hand"
        raise ModelFileUnusable(f"{target} {came}; choose another --name, or --replace it")

    async def _fetched(self, source: Source, name: str) -> Path:
        part = Part(self._shelf.part_path(name), source.key)
        try:
            if source.kind == "file":
                digest, verified = await self._copied(source, name)
            else:
                await part.open()
                digest, verified = await self._downloaded(source, name, part)
            path = self._shelf.part_path(name)
            origin = Origin(source.shown, source.key, digest, path.stat().st_size, verified, self._clock())
            await asyncio.to_thread(self._check, path, source, part)
            target = await asyncio.to_thread(self._shelf.place, path, name, origin)
        except BaseException:
            part.close()  # what has arrived stays for the next time
            if not part.size_bytes:
                part.forget()
            raise
        part.forget()
        if not verified:
            self._say(
                f"{name} has sha256={digest}; nobody had told it beforehand, so only you can say whether it is right"
            )
        return target

    @staticmethod
    def _check(path: Path, source: Source, part: Part) -> None:
        """A server that tells neither length nor digest may have sent the beginning only."""
        try:
            check_whole(path)
        except ModelFileUnusable as exc:
            part.forget()
            words = str(exc).removeprefix(f"{path} ")
            raise ModelFileUnusable(f"what {source.shown} sent {words}; nothing was installed") from None

    async def _downloaded(self, source: Source, name: str, part: Part) -> tuple[str, bool]:
        wanted = (
            hub.wanted_of(source) if source.kind == "hub" else Wanted(source.where, source.shown, sha256=source.sha256)
        )
        async with _client() as client:
            return await Download(
                client, wanted, part, progress=self._progress(name), say=self._say, sleep=self._sleep
            ).run()

    async def _copied(self, source: Source, name: str) -> tuple[str, bool]:
        part, origin = self._shelf.part_path(name), Path(source.where)
        try:
            digest = await asyncio.to_thread(self._shelf.copy, origin, part)
            if source.sha256 not in (None, digest):
                raise ModelFileWrong(
                    f"{source.where} has the digest sha256={digest}, and sha256={source.sha256} was expected; nothing was installed"
                )
        except BaseException:
            part.unlink(missing_ok=True)  # half of a copy is worth nothing
            raise
        return digest, True


def _client() -> httpx.AsyncClient:
    """
    Raises:
        ModelFileUnusable: the environment names a proxy that is none.
    """
    try:
        return httpx.AsyncClient(follow_redirects=True, max_redirects=10, timeout=TIMEOUT)
    except (ValueError, httpx.InvalidURL):
        raise ModelFileUnusable(
            "the environment names a proxy that cannot be used: look at HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
        ) from None
