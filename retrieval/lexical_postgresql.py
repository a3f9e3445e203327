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
from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

CANDIDATES = 1000

_WORD = re.compile(r"[^\W_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")

QUERY = text("""
WITH asked AS MATERIALIZED (
    SELECT word, ln(1 + (chunks - holders + 0.5) / (holders + 0.5)) AS rarity FROM (
        SELECT word, (SELECT count(*) FROM chunks_text WHERE words @@ word) AS holders
        FROM (SELECT DISTINCT to_tsquery('chasqui', term) AS word FROM unnest(CAST(:terms AS text[])) AS term) AS stems
    ) AS known, (SELECT count(*) AS chunks FROM chunks_text) AS size
), near AS MATERIALIZED (
    SELECT held.id FROM asked
    CROSS JOIN LATERAL (SELECT chunk_id AS id FROM chunks_text WHERE words @@ asked.word OFFSET 0) AS held
    JOIN chunks ON chunks.id = held.id JOIN documents ON documents.id = chunks.document_id
    WHERE documents.collection = :collection
    GROUP BY held.id ORDER BY sum(asked.rarity) DESC, held.id LIMIT :candidates
)
SELECT near.id FROM near JOIN chunks_text ON chunks_text.chunk_id = near.id CROSS JOIN asked
GROUP BY near.id ORDER BY sum(asked.rarity * ts_rank('{0, 0.5, 0.5, 1}', words, word, 1)) DESC, near.id LIMIT :k
""").bindparams(candidates=CANDIDATES)

_ADD = text(
    "INSERT INTO chunks_text (chunk_id, words) VALUES (:id, "
    "setweight(to_tsvector('chasqui', :heading), 'A') || setweight(to_tsvector('chasqui', :text), 'C'))"
)


def words(text: str) -> list[str]:
    """In lower case and without accents, as SQLite's `unicode61` makes them."""
    decomposed = unicodedata.normalize("NFKD", text).lower()
    return _WORD.findall(unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed)))


async def add_words(connection: AsyncConnection, chunks: Iterable[tuple[int, str, str]]) -> None:
    """Make chunks, each with id, heading and text, known to the full text; they leave it with their rows."""
    values = [
        {"id": id_, "heading": " ".join(words(heading)), "text": " ".join(words(body))} for id_, heading, body in chunks
    ]
    if values:
        await connection.execute(_ADD, values)
