"""Files of a collection -> documents, chunks and vectors in the catalog, and the index filled from it. Safe to run twice.

What is stored and unchanged stays; a changed file is replaced in one transaction; a file that is gone goes. One bad file
is logged and leaves the others alone.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from backends.errors import BackendError, UpstreamRefused
from backends.sources import matching_files
from retrieval.catalog import Catalog, DocumentRow, Known
from retrieval.chunking import chunk, title_of
from retrieval.embedding import Embedder
from retrieval.errors import DocumentUnreadable, EmbeddingFailed
from retrieval.parsing import parse
from retrieval.search import Searcher
from retrieval.settings import CollectionSettings

log = logging.getLogger("chasqui.collections")

PIPELINE_VERSION = "1"
"""Raise it when parsing or chunking changes: everything is read anew."""

MAX_FILE_BYTES = 50 * 1024 * 1024


class Report(NamedTuple):
    added: int
    unchanged: int
    removed: int
    failed: int


class Ingestion:
    """One collection's way from files to a ready search."""

    def __init__(
        self,
        settings: CollectionSettings,
        *,
        catalog: Catalog,
        embedder: Embedder,
        searcher: Searcher,
        root: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._embedder = embedder
        self._searcher = searcher
        self._root = root
        self._clock = clock

    async def run(self) -> Report:
        """Bring the collection up to date and open its search.

        Raises:
            BackendError: the embedding backend does not answer; what was stored before is searchable all the same.
        """
        name, started = self._settings.name, time.monotonic()
        self._searcher.state = "being indexed"
        files = await asyncio.to_thread(self._files)
        known = await self._catalog.known(name)
        await self._load_index()
        added = unchanged = failed = 0
        for number, (path, file) in enumerate(files.items(), start=1):
            self._searcher.state = f"being indexed, {number} of {len(files)} files"
            try:
                changed = await self._one(path, file, known.get(path))
            except (DocumentUnreadable, EmbeddingFailed, UpstreamRefused, OSError) as exc:
                if isinstance(exc, DocumentUnreadable) and path in known:  # what it said before, it says no more
                    self._searcher.index.remove(await self._catalog.remove([known[path].document_id]))
                failed += 1
                log.warning("collection '%s': %s", name, exc)
                continue
            except (BackendError, SQLAlchemyError):
                raise  # nobody's fault but the moment's: the whole run is tried again
            except Exception:
                failed += 1
                log.exception("collection '%s': %s could not be indexed", name, path)
                continue
            added, unchanged = added + changed, unchanged + (not changed)
        gone = [row.document_id for path, row in known.items() if path not in files]
        self._searcher.index.remove(await self._catalog.remove(gone))
        self._open()
        report = Report(added, unchanged, len(gone), failed)
        log.info(
            "collection '%s' is ready: %d files (%d new, %d removed, %d failed), %d chunks, %.1f s",
            name, len(files), added, len(gone), failed, len(self._searcher.index), time.monotonic() - started,
        )  # fmt: skip
        return report

    async def _load_index(self) -> None:
        """What is stored is searchable before anything new is read."""
        ids, vectors = await self._catalog.vectors(
            self._settings.name, embedding=await self._embedder.backend.identity()
        )
        if ids:
            self._searcher.index.add(ids, vectors)
            self._open()

    def _open(self) -> None:
        self._searcher.ready = True
        self._searcher.state = "ready"

    async def _one(self, path: str, file: Path, known: Known | None) -> bool:
        """True: it was new or had changed."""
        data = await asyncio.to_thread(_read, file)
        fingerprint = await self._fingerprint(data)
        if known is not None and known.fingerprint == fingerprint:
            return False
        parsed = await parse(path, data)
        counts = await self._embedder.word_counts(parsed.text.split())
        chunks = await asyncio.to_thread(chunk, parsed, self._settings.chunk, lambda text: _tokens(text, counts))
        if not chunks:
            raise DocumentUnreadable(f"{path} holds no text")
        title = title_of(parsed)
        texts = [f"{one.heading or title or path}\n{one.text}" for one in chunks]
        vectors = await self._embedder.vectors(texts, request_id=f"ingest:{self._settings.name}")
        document = DocumentRow(
            collection=self._settings.name,
            path=path,
            fingerprint=fingerprint,
            embedding=await self._embedder.backend.identity(),
            title=title,
            created_at=int(self._clock()),
        )
        ids, gone = await self._catalog.put(document, chunks, vectors, replaces=known.document_id if known else None)
        self._searcher.index.remove(gone)
        self._searcher.index.add(ids, vectors)
        return True

    async def _fingerprint(self, data: bytes) -> str:
        identity = await self._embedder.backend.identity()
        recipe = f"{PIPELINE_VERSION}\0{identity}\0{self._settings.chunk!r}\0".encode()
        return hashlib.sha256(recipe + data).hexdigest()

    def _files(self) -> dict[str, Path]:
        """Regular files by their path as the configuration would write it, in order."""
        return {_shown(path, self._root): path for path in matching_files(self._settings.paths, root=self._root)}


async def run_until_ready(
    ingestion: Ingestion, *, name: str, delays_s: Sequence[float] = (1, 2, 5, 10, 30, 60)
) -> None:
    """The background job: what does not answer yet (an engine, the database) is asked again, less and less often."""
    for attempt in range(1_000_000):
        try:
            await ingestion.run()
            return
        except (BackendError, SQLAlchemyError, OSError) as exc:
            delay_s = delays_s[min(attempt, len(delays_s) - 1)]
            log.warning("collection '%s' cannot be indexed yet: %s; again in %g s", name, exc, delay_s)
            await asyncio.sleep(delay_s)


def _tokens(text: str, counts: dict[str, int]) -> int:
    """Sum over words. A piece of a word, which only a splitter in need makes, is bounded by its length."""
    return sum(counts.get(word) or len(word.encode()) for word in text.split())


def _read(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DocumentUnreadable(f"{file} has {size / 2**20:.0f} MB; {MAX_FILE_BYTES / 2**20:.0f} are read at most")
    return file.read_bytes()


def _shown(path: Path, root: Path) -> str:
    """The path for people: relative where it can be, and text even where a file system's bytes are not."""
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return os.fsencode(relative).decode("utf-8", "replace")
