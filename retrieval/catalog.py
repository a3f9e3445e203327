"""Collections, documents and chunks, and where they are kept. The database is the truth; indexes are made from it.

A document is written, replaced and removed in one transaction with all of its chunks: readers see the old or the new one.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Column, LargeBinary, Table, bindparam, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel import Field, SQLModel

from retrieval.lexical_postgresql import add_words

ChunkId = int


class DocumentRow(SQLModel, table=True):
    __tablename__ = "documents"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    collection: str = Field(index=True)
    path: str
    fingerprint: str
    """Changes with the content and with everything else that would change its chunks or their vectors."""
    embedding: str
    """Identity of the model that made its vectors; vectors of different models are never compared."""
    title: str = ""
    created_at: int = Field(sa_type=BigInteger)


class ChunkRow(SQLModel, table=True):
    __tablename__ = "chunks"

    id: int | None = Field(default=None, primary_key=True, sa_type=BigInteger)
    document_id: int = Field(foreign_key="documents.id", index=True, sa_type=BigInteger)
    ordinal: int
    heading: str = ""
    text: str
    tokens: int
    vector: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """float32 little-endian, unit length."""


class NewChunk(NamedTuple):
    heading: str
    """The path of headings above it, `Quotas > Windows`."""
    text: str
    tokens: int
    """As the embedding model counts."""


class Chunk(NamedTuple):
    id: ChunkId
    path: str
    title: str
    heading: str
    text: str
    tokens: int

    @property
    def source(self) -> str:
        return f"{self.path} — {self.heading}" if self.heading else self.path


class Known(NamedTuple):
    document_id: int
    fingerprint: str


documents: Table = DocumentRow.__table__  # type: ignore[attr-defined]
chunks: Table = ChunkRow.__table__  # type: ignore[attr-defined]


class Catalog:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def known(self, collection: str) -> dict[str, Known]:
        """What is stored of a collection, by path."""
        query = select(documents.c.path, documents.c.id, documents.c.fingerprint).where(
            documents.c.collection == collection
        )
        async with self._database.connect() as connection:
            return {path: Known(id_, fingerprint) for path, id_, fingerprint in await connection.execute(query)}

    async def put(
        self, document: DocumentRow, new: Sequence[NewChunk], vectors: NDArray[np.float32], *, replaces: int | None
    ) -> tuple[list[ChunkId], list[ChunkId]]:
        """Write a document with its chunks, in place of document `replaces` where given.

        Args:
            vectors: float32 [len(new), dim].

        Returns:
            The ids of the new chunks, in order, and those of the chunks that went.
        """
        async with self._database.begin() as connection:
            gone = await self._remove(connection, [replaces] if replaces is not None else [])
            values = document.model_dump(exclude={"id"})
            document_id = await _inserted(connection, documents, values)
            ids = []
            for ordinal, (chunk, vector) in enumerate(zip(new, vectors, strict=True)):
                row = {
                    **chunk._asdict(),
                    "document_id": document_id,
                    "ordinal": ordinal,
                    "vector": vector.astype("<f4").tobytes(),
                }
                ids.append(await _inserted(connection, chunks, row))
            if connection.dialect.name == "postgresql":  # SQLite has triggers for it
                await add_words(connection, [(id_, one.heading, one.text) for id_, one in zip(ids, new, strict=True)])
        return ids, gone

    async def remove(self, document_ids: Iterable[int]) -> list[ChunkId]:
        """Returns the ids of the chunks that went."""
        async with self._database.begin() as connection:
            return await self._remove(connection, list(document_ids))

    async def _remove(self, connection: AsyncConnection, document_ids: list[int]) -> list[ChunkId]:
        gone: list[ChunkId] = []
        for document_id in document_ids:
            # RETURNING, not a SELECT before: a transaction that begins by reading cannot wait for another writer
            removal = delete(chunks).where(chunks.c.document_id == document_id).returning(chunks.c.id)
            gone += (await connection.execute(removal)).scalars().all()
            await connection.execute(delete(documents).where(documents.c.id == document_id))
        return gone

    async def vectors(self, collection: str, *, embedding: str) -> tuple[list[ChunkId], NDArray[np.float32]]:
        """The ids of a collection that this model embedded, and their vectors, float32 [n, dim], in order of id."""
        query = (
            select(chunks.c.id, chunks.c.vector)
            .join(documents, documents.c.id == chunks.c.document_id)
            .where(documents.c.collection == collection, documents.c.embedding == embedding)
            .order_by(chunks.c.id)
        )
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        matrix = np.frombuffer(b"".join(vector for _, vector in rows), "<f4")
        return [id_ for id_, _ in rows], matrix.reshape(len(rows), -1) if rows else np.zeros((0, 0), np.float32)

    async def chunks(self, collection: str, ids: Sequence[ChunkId]) -> dict[ChunkId, Chunk]:
        """Chunks of a collection by id; one that has been removed meanwhile is missing."""
        query = (
            select(chunks.c.id, documents.c.path, documents.c.title, chunks.c.heading, chunks.c.text, chunks.c.tokens)
            .join(documents, documents.c.id == chunks.c.document_id)
            .where(documents.c.collection == collection, chunks.c.id.in_(bindparam("ids", expanding=True)))
        )
        async with self._database.connect() as connection:
            return {row[0]: Chunk(*row) for row in await connection.execute(query, {"ids": list(ids)})}

    async def counts(self, collection: str) -> tuple[int, int]:
        """(documents, chunks)"""
        query = (
            select(func.count(documents.c.id.distinct()), func.count(chunks.c.id))
            .select_from(documents.outerjoin(chunks, documents.c.id == chunks.c.document_id))
            .where(documents.c.collection == collection)
        )
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).one()
        return int(row[0]), int(row[1])


async def _inserted(connection: AsyncConnection, table: Table, values: dict[str, Any]) -> int:
    """The new row's id."""
    return int((await connection.execute(insert(table).values(values).returning(table.c.id))).scalar_one())
