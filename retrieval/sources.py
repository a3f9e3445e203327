"""Where a member's bytes come from: the uploaded file, a path, or a page. And what of a declared collection is there now."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from backends.sources import matching_files
from retrieval.catalog import Catalog, Member, NewMember, Stored
from retrieval.errors import DocumentUnreadable
from retrieval.files import Files
from retrieval.ids import declared_id, source_id
from retrieval.leases import Leases
from retrieval.pages import Pages
from retrieval.settings import CollectionSettings, FilesSettings
from retrieval.tables import collections

log = logging.getLogger("chasqui.collections")

SCAN_S = 2.0
TELL_S = 0.25


class Content(NamedTuple):
    name: str
    """With the extension that says how to read it."""
    data: bytes


class Sources:
    """
    Args:
        root: what relative paths start at.
    """

    def __init__(
        self, files: Files, declared: Iterable[CollectionSettings], limits: FilesSettings, *, root: Path
    ) -> None:
        self._files = files
        self._declared = {declared_id(one.name): one for one in declared}
        self._limits = limits
        self._root = root

    @property
    def max_bytes(self) -> int:
        return int(self._limits.max_mb * 2**20)

    async def read(self, member: Member, stored: Stored) -> Content:
        """
        Raises:
            DocumentUnreadable, PageRefused, OSError: gone, too large, or not to be had.
        """
        if member.kind == "file":
            if await self._files.get(member.public_id) is None:
                raise DocumentUnreadable("the file has been deleted or has expired")
            return Content(member.name, await self._files.read(member.public_id))
        settings = self._declared.get(stored.public_id)
        if settings is None:
            raise DocumentUnreadable("the configuration does not name it any more")
        if member.kind == "url":
            page = await Pages(settings.urls, settings.allow_hosts, max_bytes=self.max_bytes).fetch(member.name)
            return Content(page.name, page.data)
        return Content(member.name, await asyncio.to_thread(self._read_path, member.name))

    def _read_path(self, name: str) -> bytes:
        path = self._root / name
        if (
            "\ufffd" in name and not path.exists()
        ):  # a name whose bytes are no text: it is looked for by how it is shown
            path = next((one for one in path.parent.iterdir() if _shown(one, self._root) == name), path)
        size = path.stat().st_size
        if size > self.max_bytes:
            raise DocumentUnreadable(
                f"{name} has {size / 2**20:.0f} MB; {self._limits.max_mb:g} are read at most (files.max_mb)"
            )
        return path.read_bytes()


class Declared:
    """Keeps one collection of the configuration in step with its files and pages.

    Files are looked at every `SCAN_S`, by size and time; what seems to have changed is read, and built anew if it says something
    else. Pages are read again every `refresh_s`.

    Args:
        wake: tells the builder that there is something to do.
    """

    def __init__(
        self,
        settings: CollectionSettings,
        catalog: Catalog,
        leases: Leases,
        *,
        root: Path,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._catalog = catalog
        self._leases = leases
        self._root = root
        self._wake = wake
        self._clock = clock
        self._pages_at = 0.0
        self._stored: Stored | None = None
        self.state = "waiting to be looked at"
        self.scanned = False

    async def run(self) -> None:
        while True:
            try:
                await self.scan()
            except (SQLAlchemyError, OSError) as exc:
                log.warning("collection '%s' cannot be looked at now: %s", self.settings.name, exc)
                self.state = f"waiting: {exc}"[:200]
            except Exception:  # the edge of a background job: a bug in it must not stop it for good
                log.exception("collection '%s' cannot be looked at now", self.settings.name)
            await self._pause()

    async def _pause(self) -> None:
        """Until the next look; meanwhile the state is told as it changes."""
        for _ in range(round(SCAN_S / TELL_S)):
            await asyncio.sleep(TELL_S)
            if self.state != "ready" and self._stored is not None:
                try:
                    await self._tell(self._stored)
                except SQLAlchemyError:
                    continue

    async def scan(self) -> None:
        """Once: what is new or changed is built, what has gone goes."""
        stored = await self._catalog.declare(self.settings.name, self.settings.embed)
        if stored.embed != self.settings.embed:
            stored = await self._catalog.update(stored, embed=self.settings.embed) or stored
            await self._catalog.rebuild(stored.id)
        self._stored = stored
        mine = await self._leases.claim(collections, collections.c.id == stored.id, limit=1)
        if mine:
            try:
                await self._bring_in_step(stored)
            finally:
                await self._leases.release(collections, stored.id)
        await self._tell(stored)

    async def _bring_in_step(self, stored: Stored) -> None:
        there = await asyncio.to_thread(self._files) if self.settings.paths else {}
        known = {member.public_id: member for member in await self._catalog.all_members(stored.id)}
        wanted = {source_id(stored.public_id, name): name for name in (*there, *self.settings.urls)}
        chunking = _as_asked(self.settings)
        refresh = self._clock() - self._pages_at >= self.settings.refresh_s
        new = []
        for public_id, name in wanted.items():
            page = name in self.settings.urls and name not in there
            print_ = "" if page else there[name]
            member = known.get(public_id)
            if member is None or member.print != print_ or member.chunking != chunking or (page and refresh):
                kind: Literal["url", "path"] = "url" if page else "path"
                new.append(NewMember(public_id, kind, name, _attributes(name), chunking, print_))
        gone = known.keys() - wanted.keys()
        if gone:
            await self._catalog.detach(stored.id, gone)
            log.info("collection '%s': %d files have gone", stored.name, len(gone))
        if new:
            await self._catalog.attach(stored.id, new)
            self._wake()
        if refresh:
            self._pages_at = self._clock()
        self.scanned = True

    async def _tell(self, stored: Stored) -> None:
        counts, _ = (await self._catalog.counts([stored.id]))[stored.id]
        waiting, total = counts["in_progress"], sum(counts.values())
        if waiting:
            self.state = f"being indexed, {total - waiting} of {total} files"
        elif total == 0 and not self.scanned:
            self.state = "waiting for another gateway to look at it"
        else:
            if self.state != "ready":
                log.info("collection '%s' is ready: %d files, %d failed", stored.name, total, counts["failed"])
            self.state = "ready"

    def _files(self) -> dict[str, str]:
        """By path as the configuration would write it: size and time of last change."""
        found = {}
        for path in matching_files(self.settings.paths, root=self._root):
            try:
                stat = path.stat()
            except OSError:
                continue  # it went meanwhile
            found[_shown(path, self._root)] = f"{stat.st_size}-{stat.st_mtime_ns}"
        return found


def _as_asked(settings: CollectionSettings) -> Mapping[str, object]:
    chunk = settings.chunk
    static = {"max_chunk_size_tokens": chunk.max_tokens, "chunk_overlap_tokens": chunk.overlap_tokens}
    return {"type": "static", "static": static, "vector_tokens": chunk.vector_tokens}


def _attributes(name: str) -> dict[str, str]:
    """For filters: `path`, and the folder it lies in."""
    folder = name.rpartition("/")[0]
    return {"path": name[:512], "folder": folder[:512]}


def _shown(path: Path, root: Path) -> str:
    """The path for people: relative where it can be, and text even where a file system's bytes are not."""
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return os.fsencode(relative).decode("utf-8", "replace")
