"""Full text on PostgreSQL: what `tsvector` leaves open, and what BM25 needs beside it.

Words are made here and not by the server, whose parser knows addresses, file names and the letters of its own locale: what
is stored and what is asked become the same plain words, on every server, without an extension. Stems are the server's (the
text search configuration `chasqui`, see the migrations).

Its own ranking does not know that a rare word says more than a common one. So each word is ranked by itself (`ts_rank`
flattens repetitions and, by its 1, long chunks) and weighed by its rarity, as BM25 does. That reads a chunk's words, which
lie outside of its row: it is done for the `CANDIDATES` whose words are the rarest together, which the index alone can tell.
"""

import re
import unicodedata
from collections.abc import Collection
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from retrieval.tables import ChunkId, DocumentId, chunks

CANDIDATES = 1000

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")

_QUERY = """
WITH asked AS MATERIALIZED (
    SELECT word, ln(1 + (chunks - holders + 0.5) / (holders + 0.5)) AS rarity FROM (
        SELECT word, (SELECT count(*) FROM {table} WHERE words @@ word) AS holders
        FROM (SELECT DISTINCT to_tsquery('chasqui', term) AS word FROM unnest(CAST(:terms AS text[])) AS term) AS stems
    ) AS known, (SELECT count(*) AS chunks FROM {table}) AS size
), near AS MATERIALIZED (
    SELECT held.id FROM asked
    CROSS JOIN LATERAL (SELECT chunk_id AS id FROM {table} WHERE words @@ asked.word OFFSET 0) AS held
    {within}
    GROUP BY held.id ORDER BY sum(asked.rarity) DESC, held.id LIMIT :candidates
)
SELECT near.id, sum(asked.rarity * ts_rank('{{0, 0.5, 0.5, 1}}', words, word, 1)) AS score
FROM near JOIN {table} AS held ON held.chunk_id = near.id CROSS JOIN asked
GROUP BY near.id ORDER BY score DESC, near.id LIMIT :k
"""

_WITHIN = "JOIN chunks ON chunks.id = held.id WHERE chunks.document_id = ANY(CAST(:within AS bigint[]))"

_ADD = (
    "INSERT INTO {table} (chunk_id, words) VALUES (:id, "
    "setweight(to_tsvector('chasqui', :heading), 'A') || setweight(to_tsvector('chasqui', :text), 'C'))"
)

ROWS_AT_ONCE = 500


async def search(
    connection: AsyncConnection, collection: int, terms: list[str], k: int, within: Collection[DocumentId] | None
) -> list[tuple[ChunkId, float]]:
    values: dict[str, Any] = {"terms": terms, "k": k, "candidates": CANDIDATES}
    if within is not None:
        values["within"] = list(within)
    query = _QUERY.format(table=_table_of(collection), within=_WITHIN if within is not None else "")
    return [(id_, float(score)) for id_, score in await connection.execute(text(query), values)]


async def create_table(connection: AsyncConnection, collection: int) -> None:
    """Without a foreign key: to drop it would lock out all readers of `chunks`."""
    table = _table_of(collection)
    await connection.execute(
        text(f"CREATE TABLE IF NOT EXISTS {table} (chunk_id bigint PRIMARY KEY, words tsvector NOT NULL)")
    )
    await connection.execute(text(f"CREATE INDEX IF NOT EXISTS ix_{table}_words ON {table} USING gin (words)"))


async def add_document(connection: AsyncConnection, collection: int, document: DocumentId) -> None:
    query = select(chunks.c.id, chunks.c.heading, chunks.c.text).where(chunks.c.document_id == document)
    rows = (await connection.execute(query)).all()
    statement = text(_ADD.format(table=_table_of(collection)))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        values = [
            {"id": id_, "heading": " ".join(words(heading)), "text": " ".join(words(body))}
            for id_, heading, body in rows[start : start + ROWS_AT_ONCE]
        ]
        await connection.execute(statement, values)


def _table_of(collection: int) -> str:
    return f"text_{int(collection)}"


def words(text: str) -> list[str]:
    """In lower case and without accents, as SQLite's `unicode61` makes them."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    return _WORD.findall(unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed)))
