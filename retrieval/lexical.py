"""Full text by what the database has: SQLite's FTS5, which triggers keep up to date, or PostgreSQL's `tsvector`."""

import re
from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval import lexical_postgresql
from retrieval.catalog import ChunkId

MAX_TERMS = 32

_TERM = re.compile(r"\w+")

_SQLITE_QUERY = text(
    "SELECT chunks.id FROM chunks_text JOIN chunks ON chunks.id = chunks_text.rowid "
    "JOIN documents ON documents.id = chunks.document_id "
    "WHERE chunks_text MATCH :terms AND documents.collection = :collection "
    "ORDER BY bm25(chunks_text, 2.0, 1.0), chunks.id LIMIT :k"
)


class LexicalIndex:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def search(self, collection: str, query: str, k: int) -> list[ChunkId]:
        """At most `k` chunks that share a word with the query, best first by BM25; headings weigh double."""
        terms: str | list[str]
        if self._database.dialect.name == "postgresql":
            statement, terms = lexical_postgresql.QUERY, distinct(lexical_postgresql.words(query))
        else:
            statement, terms = _SQLITE_QUERY, quoted(query)
        if not terms:
            return []
        async with self._database.connect() as connection:
            rows = await connection.execute(statement, {"terms": terms, "collection": collection, "k": k})
            return [row[0] for row in rows]


def quoted(query: str) -> str:
    """A MATCH expression for any of the query's words. Each is quoted: FTS5's own operators are never a user's to write."""
    return " OR ".join(f'"{word}"' for word in distinct(word.lower() for word in _TERM.findall(query)))


def distinct(words: Iterable[str]) -> list[str]:
    """The first `MAX_TERMS`, each once."""
    return list(dict.fromkeys(words))[:MAX_TERMS]
