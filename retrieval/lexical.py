"""Full text by what the database has: SQLite's FTS5, or PostgreSQL's `tsvector`.

Each collection has a table of its own, so that how rare a word is depends on its own texts and on nobody else's, and goes with
it. It holds the chunks of documents that can be found, and changes in the transaction that changes those.
"""

import json
import re
from collections.abc import Collection, Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from backends.quote import STOP_WORDS
from retrieval import lexical_postgresql as postgresql
from retrieval.tables import ChunkId, DocumentId

MAX_TERMS = 32

CANDIDATES = 2500
"""Chunks that are ranked, at most. Of a question's words the rarest count, as many as lead to so few; ranking a hundred thousand
chunks for the sake of `the` takes longer than everything else together."""

_TERM = re.compile(r"\w+")


class LexicalIndex:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._holders: dict[int, dict[str, int]] = {}
        """By collection and word, in how many chunks it is; what lies above `CANDIDATES` is as good as all."""

    async def search(
        self, collection: int, query: str, k: int, *, within: Collection[DocumentId] | None = None
    ) -> list[tuple[ChunkId, float]]:
        """At most `k` chunks that share a word with the query, best first by BM25 (the higher the better); headings weigh double.

        Args:
            within: only chunks of these documents.
        """
        if within is not None and not within:
            return []
        if self._database.dialect.name == "postgresql":
            words = telling(postgresql.words(query))
            async with self._database.connect() as connection:
                return await postgresql.search(connection, collection, words, k, within) if words else []
        words = telling(word.lower() for word in _TERM.findall(query))
        if not words:
            return []
        async with self._database.connect() as connection:
            chosen = await self._telling(connection, collection, words)
            return await _ranked(connection, collection, chosen, k, within) if chosen else []

    def forget(self, collection: int) -> None:
        """Its texts have changed."""
        self._holders.pop(collection, None)

    async def _telling(self, connection: AsyncConnection, collection: int, words: list[str]) -> list[str]:
        """The rarest, as many as `CANDIDATES` allows, and at least one that is there at all."""
        known = self._holders.setdefault(collection, {})
        for word in words:
            if word not in known:
                count = text(
                    f"SELECT count(*) FROM (SELECT 1 FROM {table_of(collection)} "  # noqa: S608 - a number
                    f"WHERE {table_of(collection)} MATCH :word LIMIT {CANDIDATES + 1})"
                )
                known[word] = int((await connection.execute(count, {"word": f'"{word}"'})).scalar_one())
        chosen: list[str] = []
        total = 0
        for word in sorted(filter(known.get, words), key=known.__getitem__):
            total += known[word]
            if chosen and total > CANDIDATES:
                break
            chosen.append(word)
        return chosen


def table_of(collection: int) -> str:
    return f"text_{int(collection)}"


def quoted(words: Iterable[str]) -> str:
    """A MATCH expression for any of them. Each is quoted: FTS5's own operators are never a user's to write."""
    return " OR ".join(f'"{word}"' for word in words)


def telling(words: Iterable[str]) -> list[str]:
    """The words of a question that say something; of one that has no others, all."""
    words = list(words)
    return distinct(word for word in words if word not in STOP_WORDS) or distinct(words)


def distinct(words: Iterable[str]) -> list[str]:
    """The last `MAX_TERMS`, each once: behind a long text that was pasted stands the question."""
    return list(dict.fromkeys(words))[-MAX_TERMS:]


async def _ranked(
    connection: AsyncConnection, collection: int, words: list[str], k: int, within: Collection[DocumentId] | None
) -> list[tuple[ChunkId, float]]:
    table = table_of(collection)
    values: dict[str, object] = {"words": quoted(words), "k": k}
    where = f"{table} MATCH :words"
    if within is not None:
        inside = "SELECT id FROM chunks WHERE document_id IN (SELECT value FROM json_each(:within))"
        where += f" AND +{table}.rowid IN ({inside})"
        values["within"] = json.dumps(list(within))
    query = text(
        f"SELECT id, -score FROM (SELECT rowid AS id, bm25({table}, 2.0, 1.0) AS score FROM {table} WHERE {where} "  # noqa: S608
        f"LIMIT {CANDIDATES}) ORDER BY score, id LIMIT :k"
    )
    return [(id_, score) for id_, score in await connection.execute(query, values)]


async def create_table(connection: AsyncConnection, collection: int) -> None:
    if connection.dialect.name == "postgresql":
        await postgresql.create_table(connection, collection)
    else:
        await connection.execute(
            text(
                f"CREATE VIRTUAL TABLE IF NOT EXISTS {table_of(collection)} USING fts5 "
                "(heading, text, content='chunks', content_rowid='id', tokenize='porter unicode61')"
            )
        )


async def drop_table(connection: AsyncConnection, collection: int) -> None:
    await connection.execute(text(f"DROP TABLE IF EXISTS {table_of(collection)}"))


async def add_document(connection: AsyncConnection, collection: int, document: DocumentId) -> None:
    """Its chunks can be found from now on."""
    if connection.dialect.name == "postgresql":
        await postgresql.add_document(connection, collection, document)
        return
    await connection.execute(
        text(
            f"INSERT INTO {table_of(collection)} (rowid, heading, text) "  # noqa: S608
            "SELECT id, heading, text FROM chunks WHERE document_id = :document"
        ),
        {"document": document},
    )


async def remove_document(connection: AsyncConnection, collection: int, document: DocumentId) -> None:
    """Before its chunks go: FTS5 has to see what it forgets."""
    table = table_of(collection)
    statement = (
        f"DELETE FROM {table} WHERE chunk_id IN (SELECT id FROM chunks WHERE document_id = :document)"  # noqa: S608
        if connection.dialect.name == "postgresql"
        else f"INSERT INTO {table} ({table}, rowid, heading, text) "  # noqa: S608
        "SELECT 'delete', id, heading, text FROM chunks WHERE document_id = :document"
    )
    await connection.execute(text(statement), {"document": document})
