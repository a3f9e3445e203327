"""Cached vectors in SQL, with their texts where those are kept. Everything here is derived: it may be deleted at any time.

SQLite has a file of its own for it, beside the database that is the truth: what fills, breaks or blocks the cache touches nothing else.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    and_,
    bindparam,
    delete,
    func,
    literal,
    select,
    tuple_,
    update,
)  # fmt: skip
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from retrieval.vector_memory import CachedVector

KEYS_PER_QUERY = 500
ROWS_PER_DELETE = 2000

TABLES = MetaData()

# A table's name carries its version: another shape is another table, and the old one goes.
vectors = Table(
    "cached_vectors_1",
    TABLES,
    Column("key", LargeBinary, primary_key=True),
    Column("model", String, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
)
Index("ix_cached_vectors_1_used", vectors.c.used_at, vectors.c.bytes)
Index("ix_cached_vectors_1_model", vectors.c.model, vectors.c.bytes, vectors.c.made_at)

texts = Table(
    "cached_texts_1",
    TABLES,
    Column("owner", String, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("model", String, nullable=False),
    Column("space", LargeBinary, nullable=False),
    Column("text", String, nullable=False),
    Column("made_at", BigInteger, nullable=False),
)
Index("ix_cached_texts_1_space", texts.c.owner, texts.c.space)


class Entry(NamedTuple):
    """One vector on its way into the store."""

    key: bytes
    model: str
    """The backend that made it."""
    value: CachedVector


class Text(NamedTuple):
    """A text that may be found again by those who share its owner."""

    owner: str
    key: bytes
    model: str
    space: bytes
    """Vectors of one space can be compared: one model, and everything that was asked of it the same."""
    text: str


class Kept(NamedTuple):
    """What is stored of one model."""

    model: str
    vectors: int
    bytes: int
    oldest_at: int
    """Unix seconds."""
    newest_at: int


class Limits(NamedTuple):
    max_bytes: int
    max_age_s: int | None = None


class VectorStore:
    """Methods raise `SQLAlchemyError`; the cache above decides what that means."""

    def __init__(self, database: AsyncEngine, limits: Limits, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock
        dialect = postgresql if database.dialect.name == "postgresql" else sqlite
        self._insert: Any = dialect.insert
        self.damaged = 0

    async def open(self) -> None:
        """Make the tables; several processes may do it at the same time."""
        for left in range(len(TABLES.tables), -1, -1):
            try:
                async with self._database.begin() as connection:
                    await connection.run_sync(TABLES.create_all)
                return
            except SQLAlchemyError:  # somebody else was faster, with one of the tables at least
                if not left:
                    raise

    async def get(self, keys: Sequence[bytes]) -> tuple[dict[bytes, CachedVector], list[bytes]]:
        """What is there and not too old; and of that, what was not used for an hour. A damaged row counts as absent."""
        found: dict[bytes, CachedVector] = {}
        unused: list[bytes] = []
        now = int(self._clock())
        query = select(vectors).where(vectors.c.key.in_(bindparam("keys", expanding=True)))
        if self._limits.max_age_s is not None:
            query = query.where(vectors.c.made_at >= now - self._limits.max_age_s)
        async with self._database.connect() as connection:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                for row in await connection.execute(query, {"keys": list(keys[start : start + KEYS_PER_QUERY])}):
                    value = self._value(row)
                    if value is None:
                        self.damaged += 1
                        continue
                    found[row.key] = value
                    if now - row.used_at > 3600:
                        unused.append(row.key)
        return found, unused

    @staticmethod
    def _value(row: Any) -> CachedVector | None:
        """None: the row is damaged, whatever it holds by now."""
        try:
            if checksum(row.key, row.model, row.vector, row.tokens) != row.checksum:
                return None
            return CachedVector(np.frombuffer(row.vector, "<f4").astype(np.float32), row.tokens)
        except (TypeError, ValueError, AttributeError, OverflowError):  # a column of another type
            return None

    async def put(self, entries: Sequence[Entry], kept: Sequence[Text], used: Iterable[bytes] = ()) -> None:
        """In one transaction. `used`: keys that were read lately."""
        now = int(self._clock())
        async with self._database.begin() as connection:
            if entries:
                # In one order everywhere: two writers must not wait for each other.
                rows = [self._row(entry, now) for entry in sorted(entries)]
                await connection.execute(self._upsert(vectors, "key"), rows)
            if kept:
                rows = [{**one._asdict(), "made_at": now} for one in sorted(kept)]
                await connection.execute(self._insert(texts).on_conflict_do_nothing(), rows)
            touch = update(vectors).where(vectors.c.key.in_(bindparam("keys", expanding=True))).values(used_at=now)
            touched = sorted(used)
            for start in range(0, len(touched), KEYS_PER_QUERY):
                await connection.execute(touch, {"keys": touched[start : start + KEYS_PER_QUERY]})

    def _row(self, entry: Entry, now: int) -> dict[str, Any]:
        data = entry.value.vector.astype("<f4").tobytes()
        return {
            "key": entry.key,
            "model": entry.model,
            "vector": data,
            "checksum": checksum(entry.key, entry.model, data, entry.value.tokens),
            "tokens": entry.value.tokens,
            "bytes": len(data),
            "made_at": now,
            "used_at": now,
        }

    def _upsert(self, table: Table, key: str) -> Any:
        insertion = self._insert(table)
        others = {column.name: insertion.excluded[column.name] for column in table.columns if column.name != key}
        return insertion.on_conflict_do_update(index_elements=[key], set_=others)

    async def evict(self) -> int:
        """What is too old, and of the rest the longest unused, down to nine tenths of the bound. How many went."""
        gone = 0
        if self._limits.max_age_s is not None:
            gone += await self._remove(vectors.c.made_at < int(self._clock()) - self._limits.max_age_s)
        total = await self._one(select(func.coalesce(func.sum(vectors.c.bytes), 0)))
        if total <= self._limits.max_bytes:
            return gone
        excess = total - self._limits.max_bytes * 9 // 10
        oldest = select(vectors.c.key, vectors.c.bytes).order_by(vectors.c.used_at).limit(ROWS_PER_DELETE)
        while excess > 0:
            async with self._database.begin() as connection:
                doomed = []
                for key, size in await connection.execute(oldest):
                    if excess <= 0:
                        break
                    doomed.append(key)
                    excess -= size
                if not doomed:
                    break
                await self._delete_keys(connection, doomed)
                gone += len(doomed)
        return gone

    async def kept(self) -> list[Kept]:
        """By model."""
        columns = (
            vectors.c.model,
            func.count(),
            func.sum(vectors.c.bytes),
            func.min(vectors.c.made_at),
            func.max(vectors.c.made_at),
        )
        query = select(*columns).group_by(vectors.c.model).order_by(vectors.c.model)
        async with self._database.connect() as connection:
            return [Kept(*row) for row in await connection.execute(query)]

    async def list_texts(
        self,
        *,
        limit: int,
        model: str | None = None,
        owner: str | None = None,
        prefix: str = "",
        after: tuple[str, str, bytes] | None = None,
    ) -> list[Any]:
        """Rows (owner, model, text, key, made_at), by owner, text and key."""
        query = (
            select(texts.c.owner, texts.c.model, texts.c.text, texts.c.key, texts.c.made_at)
            .order_by(texts.c.owner, texts.c.text, texts.c.key)
            .limit(limit)
        )
        for column, value in ((texts.c.model, model), (texts.c.owner, owner)):
            query = query.where(column == value) if value is not None else query
        if prefix:
            query = query.where(_begins(prefix))
        if after is not None:
            query = query.where(tuple_(texts.c.owner, texts.c.text, texts.c.key) > tuple_(*map(literal, after)))
        async with self._database.connect() as connection:
            return list(await connection.execute(query))

    async def searchable(self, owner: str, space: bytes) -> Mapping[bytes, str]:
        """Texts of an owner by the keys of their vectors."""
        query = select(texts.c.key, texts.c.text).where(and_(texts.c.owner == owner, texts.c.space == space))
        async with self._database.connect() as connection:
            return {row.key: row.text for row in await connection.execute(query)}

    async def delete(
        self, *, model: str | None = None, older_than_s: int | None = None, prefix: str | None = None
    ) -> int:
        """Vectors that all of these are true of; how many. `prefix`: of a text that is kept."""
        wanted: list[Any] = []
        if model is not None:
            wanted.append(vectors.c.model == model)
        if older_than_s is not None:
            wanted.append(vectors.c.made_at <= int(self._clock()) - older_than_s)
        if prefix is not None:
            named = select(texts.c.key).where(_begins(prefix))
            wanted.append(vectors.c.key.in_(named))
        return await self._remove(*wanted)

    async def forget_texts(self) -> None:
        """Where they are not kept any more."""
        async with self._database.begin() as connection:
            await connection.execute(delete(texts))

    async def _remove(self, *wanted: Any) -> int:
        gone = 0
        while True:
            async with self._database.begin() as connection:
                keys = list(
                    (await connection.execute(select(vectors.c.key).where(*wanted).limit(ROWS_PER_DELETE))).scalars()
                )
                await self._delete_keys(connection, keys)
            gone += len(keys)
            if len(keys) < ROWS_PER_DELETE:
                return gone

    async def _delete_keys(self, connection: AsyncConnection, keys: Sequence[bytes]) -> None:
        for start in range(0, len(keys), KEYS_PER_QUERY):
            part = {"keys": sorted(keys[start : start + KEYS_PER_QUERY])}
            for table in (vectors, texts):
                await connection.execute(delete(table).where(table.c.key.in_(bindparam("keys", expanding=True))), part)

    async def _one(self, query: Any) -> int:
        async with self._database.connect() as connection:
            return int((await connection.execute(query)).scalar_one())


def _begins(prefix: str) -> Any:
    """Letter by letter: `LIKE` makes no difference between large and small ones in SQLite."""
    return func.substr(texts.c.text, 1, len(prefix)) == prefix


def checksum(key: bytes, model: str, vector: bytes, tokens: int) -> bytes:
    """Sixteen bytes over a row: a flipped bit in the file must not become a wrong vector."""
    digest = hashlib.blake2b(key, digest_size=16)
    digest.update(tokens.to_bytes(8, "little", signed=True) + model.encode() + b"\0" + vector)
    return digest.digest()
