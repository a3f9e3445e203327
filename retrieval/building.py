"""Members of collections -> documents that can be found: read, cut, embedded and written in the background.

A member that is in progress is claimed, built beside what it said before, and swapped in. Whatever happens on the way, the old
version is found or the new one, whole. A build that was interrupted goes on where it was; one that fails for a reason of the
moment (an engine, the database) is tried again, less and less often; one that fails for good says why, and disturbs no other.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.errors import BackendError, UpstreamRefused
from retrieval.catalog import Member, Stored
from retrieval.chunking import Cut
from retrieval.documents import NewChunk, Target, Vectors
from retrieval.embedding import Embedder
from retrieval.errors import DocumentUnreadable, EmbeddingFailed, Overtaken, PageRefused, PageUnavailable
from retrieval.leases import Leases
from retrieval.library import Library
from retrieval.parsers import Parsers
from retrieval.settings import ChunkSettings
from retrieval.sources import Content, Sources
from retrieval.tables import members
from retrieval.view import MAX_PARTS

log = logging.getLogger("chasqui.collections")

RECIPE_VERSION = "2"
"""Raise it when parsing or chunking changes: everything is read anew."""

AT_ONCE = 3
"""Documents, so that one is read while others are embedded."""

WINDOWS_PER_CALL = 64
CALLS_AHEAD = 2
"""To the engine, of one document, so that it does not wait while chunks are written."""

POLL_S = 2.0
MAX_DELAY_S = 60.0


class Builder:
    """
    Args:
        embedders: by backend.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: AsyncEngine,
        library: Library,
        embedders: Mapping[str, Embedder],
        parsers: Parsers,
        sources: Sources,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._library = library
        self._embedders = embedders
        self._parsers = parsers
        self._sources = sources
        self._clock = clock
        self._leases = Leases(database, clock=clock)
        self._working: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while True:
                self._library.wanted.clear()
                try:
                    await self._take()
                except (SQLAlchemyError, OSError) as exc:
                    log.warning("the database does not say what is to be built: %s", exc)
                await self._pause()
        finally:
            for task in self._working:
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)

    async def _pause(self) -> None:
        """Until there is something to do, or a document is done."""
        wanted = asyncio.create_task(self._library.wanted.wait())
        try:
            await asyncio.wait([wanted, *self._working], timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
            await asyncio.gather(wanted, return_exceptions=True)

    async def _take(self) -> None:
        free = AT_ONCE - len(self._working)
        if free <= 0:
            return
        for id_ in await self._claimed(free):
            task = asyncio.create_task(self._work(id_), name=f"build member {id_}")
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    async def _claimed(self, limit: int) -> list[int]:
        """Their versions move, so that whoever was at them before writes no more."""
        waiting = members.c.status == "in_progress"
        return await self._leases.claim(members, waiting, limit=limit, version=members.c.version + 1)

    async def _work(self, id_: int) -> None:
        """One member, to an end of some kind. Nothing that one of them does may stop the others."""
        member: Member | None = None
        try:
            found = await self._found(id_)
            if found is None:
                return
            member, stored = found
            # This very version: attached again, it is claimed again, perhaps by this gateway, and the old work must end.
            async with self._leases.held(members, id_, members.c.version == member.version):
                await self._build(member, stored)
        except Overtaken as exc:
            log.info("%s", exc)
        except (BackendError, SQLAlchemyError, EmbeddingFailed, PageUnavailable) as exc:
            await self._later(id_, member, exc)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(id_, member))
            raise
        except Exception:
            log.exception("member %d could not be built", id_)
            if member is not None:
                await self._fail(member, "server_error", "it could not be built; the cause is in the gateway's log")

    async def _found(self, id_: int) -> tuple[Member, Stored] | None:
        query = select(*(members.c[name] for name in Member.__dataclass_fields__)).where(members.c.id == id_)
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        stored = await self._library.catalog.by_number(row.collection_id) if row is not None else None
        return (Member(*row), stored) if row is not None and stored is not None else None

    async def _build(self, member: Member, stored: Stored) -> None:
        embedder = self._embedders.get(stored.embed)
        if embedder is None:
            await self._fail(
                member, "server_error", f"there is no backend '{stored.embed}' any more that could embed it"
            )
            return
        try:
            data = await self._sources.read(member, stored)
            await self._from(data, member, stored, embedder)
        except DocumentUnreadable as exc:
            await self._fail(member, "unsupported_file" if exc.kind else "invalid_file", str(exc))
        except PageRefused as exc:
            await self._fail(member, "invalid_file", str(exc))
        except OSError as exc:
            await self._fail(member, "invalid_file", f"{member.name} cannot be read: {exc.strerror or exc}")
        except UpstreamRefused as exc:
            if exc.status == 429:
                raise
            await self._fail(member, "server_error", f"the embedding model refused it: {exc}")

    async def _from(self, data: Content, member: Member, stored: Stored, embedder: Embedder) -> None:
        target = Target(member.id, stored.id, member.version)
        identity = await embedder.backend.identity()
        settings = chunk_settings(member.chunking)
        recipe = f"{RECIPE_VERSION}\0{identity}\0{settings!r}\0{data.name}\0".encode()
        content = await asyncio.to_thread(hashlib.sha256, data.data)  # up to hundreds of megabytes
        fingerprint = hashlib.sha256(recipe + content.digest()).hexdigest()
        documents = self._library.documents
        if member.document_id is not None and await documents.fingerprint(member.document_id) == fingerprint:
            await documents.keep(target)
            return
        started = time.monotonic()
        async with self._parsers.reading(data.name, data.data) as reading:
            counts = await embedder.word_counts(reading.words)
            window_tokens = await embedder.window_tokens()
            cuts = await reading.chunks(counts, settings, window_tokens=window_tokens)
            title, size = reading.title, reading.size_bytes
        if not cuts:
            raise DocumentUnreadable(f"{data.name} holds no text")
        document, done = await documents.begin(target, fingerprint=fingerprint, embedding=identity, title=title)
        caller = f"ingest:{stored.public_id}"
        async with aclosing(self._embedded(cuts[done:], embedder, caller)) as batches:
            async for batch, vectors in batches:
                new = [NewChunk(cut.heading, cut.text, cut.tokens, cut.page) for cut in batch]
                await documents.add(target, document, new, vectors, first=done)
                done += len(batch)
        if await embedder.backend.identity() != identity:
            raise EmbeddingFailed(f"the model of backend '{embedder.backend.name}' changed while it was at work")
        if await documents.swap(target, document, usage_bytes=size):
            log.info(
                "collection '%s': %s is indexed, %d chunks, %.1f s",
                stored.name, member.name, len(cuts), time.monotonic() - started,
            )  # fmt: skip

    async def _embedded(
        self, cuts: Sequence[Cut], embedder: Embedder, caller: str
    ) -> AsyncGenerator[tuple[list[Cut], list[Vectors]], None]:
        """Batches of chunks with the vectors of each, in order; the next ones are on their way meanwhile."""
        batches = _batches(cuts)
        ahead: list[tuple[list[Cut], asyncio.Task[Any]]] = []
        try:
            while batches or ahead:
                while batches and len(ahead) < CALLS_AHEAD:
                    batch = batches.pop(0)
                    windows = [window for cut in batch for window in cut.windows[:MAX_PARTS]]
                    ahead.append((batch, asyncio.create_task(embedder.vectors(windows, request_id=caller))))
                batch, task = ahead.pop(0)
                matrix = await task
                vectors, place = [], 0
                for cut in batch:
                    parts = len(cut.windows[:MAX_PARTS])
                    vectors.append(matrix[place : place + parts])
                    place += parts
                yield batch, vectors
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)

    async def _fail(self, member: Member, code: str, message: str) -> None:
        log.warning("collection member '%s': %s", member.name, message)
        target = Target(member.id, member.collection_id, member.version)
        await self._library.documents.fail(target, code, message.replace("\0", " "))

    async def _later(self, id_: int, member: Member | None, exc: Exception) -> None:
        attempts = member.attempts if member is not None else 0
        delay_s = min(MAX_DELAY_S, 2.0**attempts)
        log.warning(
            "%s cannot be indexed yet: %s; again in %g s", member.name if member else f"member {id_}", exc, delay_s
        )
        until = int((self._clock() + delay_s) * 1000)
        values = {"claimed_by": "", "claimed_until": until, "attempts": min(attempts + 1, 10)}
        try:
            async with self._database.begin() as connection:
                mine = members.c.id == id_, members.c.claimed_by == self._leases.holder
                same = (members.c.version == member.version,) if member is not None else ()
                await connection.execute(update(members).where(*mine, *same).values(values))
        except SQLAlchemyError:
            pass  # the claim ends by itself

    async def _give_back(self, id_: int, member: Member | None) -> None:
        same = members.c.version == member.version if member is not None else None
        try:
            await self._leases.release(members, id_, same)
        except SQLAlchemyError:
            pass  # it ends by itself


def _batches(cuts: Sequence[Cut]) -> list[list[Cut]]:
    batches: list[list[Cut]] = []
    windows = WINDOWS_PER_CALL
    for cut in cuts:
        if windows + len(cut.windows) > WINDOWS_PER_CALL:
            batches.append([])
            windows = 0
        batches[-1].append(cut)
        windows += len(cut.windows)
    return batches


def chunk_settings(chunking: Mapping[str, Any]) -> ChunkSettings:
    """What was asked for; `auto` is ours to choose."""
    static = chunking.get("static") or {}
    if not static:
        return ChunkSettings()
    return ChunkSettings(
        max_tokens=static["max_chunk_size_tokens"],
        overlap_tokens=static["chunk_overlap_tokens"],
        vector_tokens=chunking.get("vector_tokens", ChunkSettings().vector_tokens),
    )
