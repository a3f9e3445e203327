"""Versions of what members say: written chunk by chunk beside the one that counts, then put in its place in one step.

A build that is interrupted leaves a version that nobody finds. Whoever goes on with the same fingerprint keeps its chunks;
`sweep` removes those that nobody will go on with.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as Many
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, bindparam, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from retrieval import lexical
from retrieval.errors import Overtaken
from retrieval.tables import ChunkId, DocumentId, chunks, collections, documents, members

Vectors = NDArray[np.float32]

IDS_AT_ONCE = 500


class NewChunk(NamedTuple):
    heading: str
    """The document's title and the path of headings above it, `Limits > Quotas > Windows`."""
    text: str
    tokens: int
    """As the embedding model counts."""
    page: int | None = None
    """From 1, where the document has pages."""


class Chunk(NamedTuple):
    """A chunk as it is found."""

    id: ChunkId
    document_id: DocumentId
    ordinal: int
    collection: str
    """Its name."""
    collection_id: str
    """Its public id."""
    file_id: str
    path: str
    """The member's name."""
    kind: str
    title: str
    heading: str
    page: int | None
    text: str
    tokens: int
    attributes: Mapping[str, Any]

    @property
    def source(self) -> str:
        place = f", page {self.page}" if self.page is not None else ""
        return f"{self.path}{place} — {self.heading}" if self.heading else f"{self.path}{place}"


class Target(NamedTuple):
    """What is built, for whom."""

    member_id: int
    collection_id: int
    version: int
    """Of the member when it was claimed: it moves with every claim and every change, so that only the newest build can write."""


class Live(NamedTuple):
    """What is known of a document that can be found."""

    embedding: str
    """Identity of the model that made its vectors."""
    attributes: Mapping[str, Any]
    print: int
    """64 bits of what it says: in a database that was restored, an id may mean another document."""


class Held(NamedTuple):
    """A document that can be found, with its vectors: [n, dim], and of each row the chunk and the number of the part."""

    id: DocumentId
    chunk_ids: Sequence[ChunkId]
    parts: Sequence[int]
    vectors: Vectors


_CHUNK = (
    select(
        chunks.c.id, chunks.c.document_id, chunks.c.ordinal, collections.c.name, collections.c.public_id,
        members.c.public_id, members.c.name, members.c.kind, documents.c.title, chunks.c.heading, chunks.c.page,
        chunks.c.text, chunks.c.tokens, members.c.attributes,
    )
    .join(documents, documents.c.id == chunks.c.document_id)
    .join(members, and_(members.c.id == documents.c.member_id, members.c.document_id == documents.c.id))
    .join(collections, collections.c.id == documents.c.collection_id)
)  # fmt: skip
"""Only of documents that count."""

_ENDED: dict[str, Any] = {"claimed_by": "", "claimed_until": 0}

_BY_ID = _CHUNK.where(chunks.c.id.in_(bindparam("ids", expanding=True)))


class Documents:
    def __init__(self, database: AsyncEngine, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def begin(self, target: Target, *, fingerprint: str, embedding: str, title: str) -> tuple[DocumentId, int]:
        """A version to write to, and how many of its chunks are there already.

        Raises:
            Overtaken
        """
        mine = and_(
            documents.c.member_id == target.member_id, documents.c.id.is_distinct_from(_current(target.member_id))
        )
        async with self._database.begin() as connection:
            if not await _take(connection, target):
                raise Overtaken(target.member_id)
            unfinished = (await connection.execute(select(documents.c.id, documents.c.fingerprint).where(mine))).all()
            goes_on = next((id_ for id_, print_ in unfinished if print_ == fingerprint), None)
            left = [id_ for id_, _ in unfinished if id_ != goes_on]
            await remove_documents(connection, left)
            if goes_on is not None:
                count = select(func.count()).select_from(chunks).where(chunks.c.document_id == goes_on)
                return goes_on, int((await connection.execute(count)).scalar_one())
            values = {
                "member_id": target.member_id, "collection_id": target.collection_id, "fingerprint": fingerprint,
                "embedding": embedding, "title": title, "created_at": int(self._clock()),
            }  # fmt: skip
            made = insert(documents).values(values).returning(documents.c.id)
            return int((await connection.execute(made)).scalar_one()), 0

    async def add(
        self, target: Target, document: DocumentId, new: Sequence[NewChunk], vectors: Sequence[Vectors], *, first: int
    ) -> None:
        """
        Raises:
            Overtaken: nothing was written.

        Args:
            vectors: of each chunk, float32 [parts, dim].
            first: ordinal of the first one.
        """
        rows = [
            {
                **chunk._asdict(),
                "document_id": document,
                "ordinal": ordinal,
                "parts": len(matrix),
                "vector": matrix.astype("<f4").tobytes(),
            }
            for ordinal, (chunk, matrix) in enumerate(zip(new, vectors, strict=True), start=first)
        ]
        async with self._database.begin() as connection:
            if not await _take(connection, target) or not await _is_draft(connection, target, document):
                raise Overtaken(target.member_id)
            await connection.execute(insert(chunks), rows)

    async def swap(self, target: Target, document: DocumentId, *, usage_bytes: int) -> bool:
        """From now on this version is found, and no other one. False: the member has changed meanwhile, or gone."""
        async with self._database.begin() as connection:
            await _changed(connection, target.collection_id)  # first, as everywhere: locks are taken in one order
            if not await _take(connection, target) or not await _is_draft(connection, target, document):
                await connection.rollback()
                return False
            await remove_versions(connection, target.collection_id, members.c.id == target.member_id, but=document)
            await lexical.add_document(connection, target.collection_id, document)
            done = {"document_id": document, "usage_bytes": usage_bytes, **_ENDED}
            await _update(connection, target.member_id, status="completed", error_code="", error_message="", **done)
        return True

    async def keep(self, target: Target) -> bool:
        """What is found says what was to be built: nothing but the member's state changes."""
        async with self._database.begin() as connection:
            if not await _take(connection, target):
                return False
            await _update(connection, target.member_id, status="completed", error_code="", error_message="", **_ENDED)
        return True

    async def fail(self, target: Target, code: str, message: str) -> bool:
        """It cannot be built. What it said before, it says no more. False: as for `swap`."""
        async with self._database.begin() as connection:
            await _changed(connection, target.collection_id)
            if not await _take(connection, target):
                await connection.rollback()
                return False
            await remove_versions(connection, target.collection_id, members.c.id == target.member_id)
            why = {"error_code": code, "error_message": message[:500]}
            await _update(
                connection, target.member_id, status="failed", document_id=None, usage_bytes=0, **why, **_ENDED
            )
            await _changed(connection, target.collection_id)
        return True

    async def fingerprint(self, document: DocumentId) -> str:
        async with self._database.connect() as connection:
            query = select(documents.c.fingerprint).where(documents.c.id == document)
            return (await connection.execute(query)).scalar_one_or_none() or ""

    async def sweep(self) -> int:
        """Remove the versions that nobody goes on with; how many there were."""
        wanted = exists().where(
            members.c.id == documents.c.member_id,
            (members.c.document_id == documents.c.id) | (members.c.status == "in_progress"),
        )
        async with self._database.begin() as connection:
            await connection.execute(update(members).where(members.c.id == -1).values(attempts=0))
            rows = (await connection.execute(select(documents.c.id).where(~wanted))).scalars().all()
            await remove_documents(connection, rows)
        return len(rows)

    async def live(self, collection: int) -> dict[DocumentId, Live]:
        """The documents that can be found."""
        query = (
            select(documents.c.id, documents.c.embedding, members.c.attributes, documents.c.fingerprint)
            .join(members, members.c.document_id == documents.c.id)
            .where(documents.c.collection_id == collection)
        )
        async with self._database.connect() as connection:
            return {row[0]: Live(row[1], row[2], print_of(row[0], row[3])) for row in await connection.execute(query)}

    async def held(self, ids: Many[DocumentId]) -> list[Held]:
        """Documents with their vectors; those that have gone meanwhile are missing."""
        query = (
            select(chunks.c.document_id, chunks.c.id, chunks.c.parts, chunks.c.vector)
            .where(chunks.c.document_id.in_(bindparam("ids", expanding=True)))
            .order_by(chunks.c.document_id, chunks.c.ordinal)
        )
        found: dict[DocumentId, list[tuple[int, int, bytes]]] = {}
        wanted = list(ids)
        async with self._database.connect() as connection:
            for start in range(0, len(wanted), IDS_AT_ONCE):
                for document, id_, parts, vector in await connection.execute(
                    query, {"ids": wanted[start : start + IDS_AT_ONCE]}
                ):
                    found.setdefault(document, []).append((id_, parts, vector))
        return [_held(document, rows) for document, rows in found.items()]

    async def chunks(self, ids: Sequence[ChunkId]) -> dict[ChunkId, Chunk]:
        """Chunks by id; one that has been removed meanwhile is missing."""
        async with self._database.connect() as connection:
            return {row[0]: Chunk._make(row) for row in await connection.execute(_BY_ID, {"ids": list(ids)})}

    async def of_document(self, document: DocumentId, first: int = 0, last: int | None = None) -> list[Chunk]:
        """Chunks by their place, both ends included."""
        query = _CHUNK.where(chunks.c.document_id == document, chunks.c.ordinal >= first).order_by(chunks.c.ordinal)
        if last is not None:
            query = query.where(chunks.c.ordinal <= last)
        async with self._database.connect() as connection:
            return [Chunk._make(row) for row in await connection.execute(query)]


def print_of(document: DocumentId, fingerprint: str) -> int:
    digest = hashlib.blake2b(f"{document}/{fingerprint}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


async def remove_versions(
    connection: AsyncConnection, collection: int, which: Any, *, but: DocumentId | None = None
) -> None:
    """Those of some members with their chunks, in this transaction, which has written something already.

    Args:
        which: a condition on `members`.
    """
    held = (
        select(documents.c.id, documents.c.id == members.c.document_id)
        .join(members, members.c.id == documents.c.member_id)
        .where(which, documents.c.id != (but or 0))
    )
    for id_, found in (await connection.execute(held)).all():
        if found:  # the others are not in the full text, and FTS5 forgets what it has never seen by breaking
            await lexical.remove_document(connection, collection, id_)
        await remove_documents(connection, [id_])


async def remove_documents(connection: AsyncConnection, ids: Iterable[DocumentId]) -> None:
    for id_ in ids:
        await connection.execute(delete(chunks).where(chunks.c.document_id == id_))
        await connection.execute(delete(documents).where(documents.c.id == id_))


async def _take(connection: AsyncConnection, target: Target) -> bool:
    """Whether the member is still as it was when it was claimed, and nobody else changes it before this transaction ends. A write, so
    that the transaction waits for other writers: one that begins by reading could not."""
    mine = and_(members.c.id == target.member_id, members.c.version == target.version)
    return bool((await connection.execute(update(members).where(mine).values(version=target.version))).rowcount)


async def _update(connection: AsyncConnection, member: int, **values: Any) -> None:
    """The build has ended: whoever was at it writes no more."""
    ended = update(members).where(members.c.id == member)
    await connection.execute(ended.values(**values, version=members.c.version + 1))


async def _is_draft(connection: AsyncConnection, target: Target, document: DocumentId) -> bool:
    """Whether it is there, the member's, and not found yet."""
    query = select(documents.c.id).where(
        documents.c.id == document,
        documents.c.member_id == target.member_id,
        documents.c.id.is_distinct_from(_current(target.member_id)),
    )
    return (await connection.execute(query)).first() is not None


def _current(member_id: int) -> Any:
    return select(members.c.document_id).where(members.c.id == member_id).scalar_subquery()


async def _changed(connection: AsyncConnection, collection: int) -> None:
    await connection.execute(
        update(collections).where(collections.c.id == collection).values(generation=collections.c.generation + 1)
    )


def _held(document: DocumentId, rows: list[tuple[int, int, bytes]]) -> Held:
    matrix = np.frombuffer(b"".join(vector for *_, vector in rows), "<f4")
    total = sum(parts for _, parts, _ in rows)
    ids = [id_ for id_, parts, _ in rows for _ in range(parts)]
    numbers = [number for _, parts, _ in rows for number in range(parts)]
    return Held(document, ids, numbers, matrix.reshape(total, -1) if total else np.zeros((0, 0), np.float32))
