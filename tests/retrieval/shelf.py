"""Collections for tests: written past the builder, or built by a real one with a backend that makes vectors of words."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table, func, select
from sqlalchemy import text as sql
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.building import Builder
from retrieval.catalog import Catalog, NewMember, Stored
from retrieval.documents import Documents, NewChunk, Target
from retrieval.embedding import Embedder
from retrieval.files import Files
from retrieval.lexical import LexicalIndex
from retrieval.library import Library
from retrieval.parsers import Parsers
from retrieval.reranking import Reranker
from retrieval.retrievals import Retrievals
from retrieval.search import Searcher
from retrieval.settings import CollectionSettings, FilesSettings
from retrieval.sources import Sources
from retrieval.tables import DocumentId, chunks, documents, members
from tests.retrieval.fakes import WordsBackend


class Shelf:
    def __init__(
        self,
        database: AsyncEngine,
        folder: Path,
        *,
        backend: WordsBackend | None = None,
        declared: Sequence[CollectionSettings] = (),
        limits: FilesSettings | None = None,
        rerankers: Mapping[str, Reranker] = {},
    ) -> None:
        self.database = database
        self.backend = backend or WordsBackend()
        self.embedder = Embedder(self.backend)
        self.catalog = Catalog(database)
        self.documents = Documents(database)
        self.files = Files(database, self.catalog)
        self.lexical = LexicalIndex(database)
        self.library = Library(
            database, self.catalog, self.documents, self.files, self.lexical, Retrievals(database), folder=folder
        )
        self.parsers = Parsers(limits or FilesSettings())
        self.sources = Sources(self.files, declared, limits or FilesSettings(), root=folder)
        embedders = {"words": self.embedder}
        self.searcher = Searcher(self.library, embedders, rerankers)
        self.builder = Builder(database, self.library, embedders, self.parsers, self.sources)

    async def store(self, name: str = "docs") -> Stored:
        return await self.catalog.create(name=name, owner="default", embed="words")

    async def put(self, stored: Stored, name: str, new: Sequence[NewChunk], **attributes: Any) -> list[int]:
        """A document with these chunks, found from now on; their ids."""
        await self.catalog.attach(stored.id, [NewMember(name, "file", name, attributes, {"type": "auto"})])
        member = await self.catalog.member(stored.id, name)
        assert member is not None
        target = Target(member.id, stored.id, member.version)
        identity = await self.backend.identity()
        document, _ = await self.documents.begin(target, fingerprint="f", embedding=identity, title="")
        vectors = await self.embedder.vectors([one.text for one in new], request_id="r")
        await self.documents.add(target, document, new, [vector[np.newaxis] for vector in vectors], first=0)
        assert await self.documents.swap(target, document, usage_bytes=1)
        query = select(chunks.c.id).where(chunks.c.document_id == document).order_by(chunks.c.ordinal)
        async with self.database.connect() as connection:
            return list((await connection.execute(query)).scalars().all())

    async def fresh(self, stored: Stored) -> Stored:
        again = await self.catalog.get(stored.public_id)
        assert again is not None
        return again

    async def built(self, stored: Stored) -> None:
        """Until nothing of it is in progress."""
        task = asyncio.create_task(self.builder.run())
        try:
            while (await self.catalog.counts([stored.id]))[stored.id][0]["in_progress"]:
                self.library.wanted.set()
                await asyncio.sleep(0.01)
                if task.done():
                    task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def aclose(self) -> None:
        await self.parsers.aclose()

    async def orphans(self) -> dict[str, int]:
        """Rows that belong to nothing that can be found, and of full text that belongs to no chunk."""
        live = select(members.c.document_id).where(members.c.document_id.is_not(None))
        async with self.database.connect() as connection:
            loose = (
                (await connection.execute(select(documents.c.id).where(documents.c.id.not_in(live)))).scalars().all()
            )
            lost = (
                (
                    await connection.execute(
                        select(chunks.c.id).where(chunks.c.document_id.not_in(select(documents.c.id)))
                    )
                )
                .scalars()
                .all()
            )
        return {"documents": len(loose), "chunks": len(lost)}

    async def target(self, stored: Stored, name: str = "a.md", **attributes: Any) -> Target:
        """A member to be built; where it is there already, to be built anew."""
        await self.catalog.attach(stored.id, [NewMember(name, "file", name, attributes, {"type": "auto"})])
        member = await self.catalog.member(stored.id, name)
        assert member is not None
        return Target(member.id, stored.id, member.version)

    async def draft(
        self, target: Target, matrices: Mapping[str, NDArray[np.float32]], *, fingerprint: str, embedding: str = "m"
    ) -> DocumentId:
        """A version that nobody finds yet: of each text the vectors [parts, dim]. What is there of it already stays."""
        document, done = await self.documents.begin(target, fingerprint=fingerprint, embedding=embedding, title="T")
        new = [NewChunk("", text, 1) for text in matrices][done:]
        if new:
            await self.documents.add(target, document, new, list(matrices.values())[done:], first=done)
        return document

    async def place(
        self,
        stored: Stored,
        name: str,
        matrices: Mapping[str, NDArray[np.float32]],
        *,
        embedding: str = "m",
        **attributes: Any,
    ) -> dict[int, NDArray[np.float32]]:
        """A document with these texts and vectors, found from now on; vectors by the id of the chunk."""
        target = await self.target(stored, name, **attributes)
        document = await self.draft(target, matrices, fingerprint=f"{name}/{target.version}", embedding=embedding)
        assert await self.documents.swap(target, document, usage_bytes=1)
        found = await self.documents.of_document(document)
        return {chunk.id: matrices[chunk.text] for chunk in found}

    async def in_full_text(self, stored: Stored) -> set[int]:
        """Chunks that the full text knows; SQLite has looked at its index first."""
        table, names = f"text_{stored.id}", f"names_{stored.id}"
        async with self.database.begin() as connection:
            if connection.dialect.name == "postgresql":
                return set((await connection.execute(sql(f"SELECT chunk_id FROM {table}"))).scalars().all())
            await connection.execute(sql(f"INSERT INTO {table} ({table}) VALUES ('integrity-check')"))
            await connection.execute(sql(f"CREATE VIRTUAL TABLE temp.{names} USING fts5vocab(main, {table}, instance)"))
            known = (await connection.execute(sql(f"SELECT doc FROM temp.{names}"))).scalars().all()
            await connection.execute(sql(f"DROP TABLE temp.{names}"))
            return set(known)

    async def live_chunks(self, stored: Stored) -> set[int]:
        query = (
            select(chunks.c.id)
            .join(members, members.c.document_id == chunks.c.document_id)
            .where(members.c.collection_id == stored.id)
        )
        async with self.database.connect() as connection:
            return set((await connection.execute(query)).scalars().all())

    async def rows(self, table: Table) -> int:
        async with self.database.connect() as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())
