"""Vectors by key, in the database, bounded by bytes. A cache: whatever is wrong with it, the answer is computed instead."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Column, LargeBinary, Table, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel import Field, SQLModel

log = logging.getLogger("chasqui.embeddings")

KEYS_PER_QUERY = 500
TOUCH_AFTER_S = 3600
"""A hit is noted at most this often: reading must not become writing."""


class CachedVectorRow(SQLModel, table=True):
    __tablename__ = "embedding_cache"

    key: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    """SHA-256 of everything that changes the vector, see `embedding.py`."""
    vector: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    checksum: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    tokens: int
    used_at: int = Field(index=True, sa_type=BigInteger)


class CachedVector(NamedTuple):
    vector: NDArray[np.float32]
    tokens: int


rows: Table = CachedVectorRow.__table__  # type: ignore[attr-defined]


class EmbeddingCache:
    """
    Args:
        max_bytes: of vectors; when more are stored, the longest unused go.
    """

    def __init__(self, database: AsyncEngine, *, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._clock = clock
        self._stored_bytes: int | None = None

    async def get(self, keys: Sequence[bytes]) -> dict[bytes, CachedVector]:
        """What is there; a damaged row counts as absent, and so does everything when the database fails."""
        found: dict[bytes, CachedVector] = {}
        now = int(self._clock())
        stale: list[bytes] = []
        query = select(rows).where(rows.c.key.in_(bindparam("keys", expanding=True)))
        try:
            async with self._database.connect() as connection:
                for start in range(0, len(keys), KEYS_PER_QUERY):
                    part = list(dict.fromkeys(keys[start : start + KEYS_PER_QUERY]))
                    for row in await connection.execute(query, {"keys": part}):
                        if _checksum(row.key, row.vector, row.tokens) != row.checksum:
                            log.error("a damaged vector in the embedding cache was not used")
                            continue
                        found[row.key] = CachedVector(np.frombuffer(row.vector, "<f4").astype(np.float32), row.tokens)
                        if now - row.used_at > TOUCH_AFTER_S:
                            stale.append(row.key)
            if stale:
                await self._touch(stale, now)
        except SQLAlchemyError as exc:
            log.error("the embedding cache cannot be read, vectors are computed: %s", exc)
        return found

    async def put(self, vectors: Mapping[bytes, CachedVector]) -> None:
        now = int(self._clock())
        values: list[dict[str, Any]] = []
        # in one order everywhere: two writers must not wait for each other
        for key, (vector, tokens) in sorted(vectors.items()):
            data = vector.astype("<f4").tobytes()
            values.append(
                {"key": key, "vector": data, "checksum": _checksum(key, data, tokens), "tokens": tokens, "used_at": now}
            )
        insertion = (postgresql if self._database.dialect.name == "postgresql" else sqlite).insert(rows)
        insertion = insertion.on_conflict_do_update(
            index_elements=["key"],
            set_={name: insertion.excluded[name] for name in ("vector", "checksum", "tokens", "used_at")},
        )
        try:
            async with self._database.begin() as connection:
                await connection.execute(insertion, values)
                await self._evict(connection, sum(len(value["vector"]) for value in values))
        except SQLAlchemyError as exc:
            self._stored_bytes = None
            log.error("the embedding cache cannot be written: %s", exc)

    async def _touch(self, keys: list[bytes], now: int) -> None:
        async with self._database.begin() as connection:
            statement = update(rows).where(rows.c.key.in_(bindparam("keys", expanding=True))).values(used_at=now)
            for start in range(0, len(keys), KEYS_PER_QUERY):
                await connection.execute(statement, {"keys": keys[start : start + KEYS_PER_QUERY]})

    async def _evict(self, connection: AsyncConnection, added_bytes: int) -> None:
        """Down to nine tenths, so that not every write evicts."""
        execute = connection.execute
        if self._stored_bytes is None or self._stored_bytes + added_bytes > self._max_bytes:
            self._stored_bytes = (
                await execute(select(func.coalesce(func.sum(func.length(rows.c.vector)), 0)))
            ).scalar_one()
        else:
            self._stored_bytes += added_bytes
        excess = self._stored_bytes - self._max_bytes
        if excess <= 0:
            return
        excess += self._max_bytes // 10
        doomed: list[bytes] = []
        for key, size in await execute(
            select(rows.c.key, func.length(rows.c.vector)).order_by(rows.c.used_at, rows.c.key)
        ):
            if excess <= 0:
                break
            doomed.append(key)
            excess -= size
        for start in range(0, len(doomed), KEYS_PER_QUERY):
            part = doomed[start : start + KEYS_PER_QUERY]
            await execute(delete(rows).where(rows.c.key.in_(bindparam("keys", expanding=True))), {"keys": part})
        self._stored_bytes = None


def _checksum(key: bytes, vector: bytes, tokens: int) -> bytes:
    """Sixteen bytes over a row: a flipped bit in the file must not become a wrong vector."""
    return hashlib.blake2b(key + tokens.to_bytes(8, "little", signed=True) + vector, digest_size=16).digest()
