"""Cached vectors in SQL: SQLite and PostgreSQL alike."""

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.vector_memory import CachedVector
from retrieval.vector_store import KEYS_PER_QUERY, Entry, Limits, Text, VectorStore, texts, vectors

pytestmark = pytest.mark.anyio

VECTOR_BYTES = 32


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(database: AsyncEngine, clock: Clock) -> VectorStore:
    return await opened(database, clock)


async def opened(database: AsyncEngine, clock: Clock, **limits: Any) -> VectorStore:
    store = VectorStore(database, Limits(**({"max_bytes": 20 * VECTOR_BYTES} | limits)), clock=clock)
    await store.open()
    return store


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def some(*names: object, model: str = "m") -> list[Entry]:
    return [
        Entry(
            key(name),
            model,
            CachedVector(np.random.default_rng(number + 1).standard_normal(8).astype(np.float32), number),
        )
        for number, name in enumerate(names)
    ]


async def known(store: VectorStore, *names: object) -> set[object]:
    found, _ = await store.get([key(name) for name in names])
    return {name for name in names if key(name) in found}


async def stored_bytes(database: AsyncEngine) -> int:
    async with database.connect() as connection:
        return (
            await connection.execute(select(func.coalesce(func.sum(func.length(vectors.c.vector)), 0)))
        ).scalar_one()


async def test_a_vector_comes_back_with_the_same_bits_and_tokens(store: VectorStore) -> None:
    strange = np.array([0.0, -0.0, 1e-45, 3.4e38, -1.5, np.pi, 1 / 3, 2**-126], np.float32)
    entries = [*some("a", "b"), Entry(key("c"), "m", CachedVector(strange, 7))]
    await store.put(entries, [])
    found, _ = await store.get([key("c"), key("a"), key("nobody"), key("b")])
    assert {name: (one.vector.tobytes(), one.tokens) for name, one in found.items()} == {
        entry.key: (entry.value.vector.tobytes(), entry.value.tokens) for entry in entries
    }
    assert all(one.vector.dtype == np.float32 and one.vector.flags.writeable for one in found.values())


async def test_putting_again_replaces(store: VectorStore, database: AsyncEngine) -> None:
    await store.put(some("a"), [])
    await store.put([Entry(key("a"), "m", CachedVector(np.ones(8, np.float32), 99))], [])
    ((one,), _) = (list((await store.get([key("a")]))[0].values()), None)
    assert (one.vector.tolist(), one.tokens) == ([1.0] * 8, 99)
    assert await stored_bytes(database) == VECTOR_BYTES


async def test_several_processes_open_and_write_the_same_vectors_and_do_not_wait_for_each_other(
    database: AsyncEngine, clock: Clock
) -> None:
    stores = await asyncio.gather(*(opened(database, clock, max_bytes=10**9) for _ in range(2)))
    entries = some(*range(200))
    for _ in range(5):
        await asyncio.gather(stores[0].put(entries, []), stores[1].put(list(reversed(entries)), []))
    assert await known(stores[0], *range(200)) == set(range(200))


async def test_more_keys_than_one_query_takes(database: AsyncEngine, clock: Clock) -> None:
    store = await opened(database, clock, max_bytes=10**9)
    names = range(2 * KEYS_PER_QUERY + 10)
    await store.put(some(*names), [])
    assert await known(store, *names) == set(names)


async def test_the_bytes_come_back_under_the_bound_and_the_longest_unused_go(
    store: VectorStore, database: AsyncEngine, clock: Clock
) -> None:
    for number in range(0, 60, 3):
        clock.now_s += 1
        await store.put(some(*range(number, number + 3)), [])
        await store.evict()
        assert await stored_bytes(database) <= 20 * VECTOR_BYTES
    assert await stored_bytes(database) >= 15 * VECTOR_BYTES
    assert await known(store, 0, 1, 57, 58, 59) == {57, 58, 59}
    clock.now_s += 4000
    first = min(await known(store, *range(60)), key=str)
    found, unused = await store.get([key(first)])
    assert unused == list(found)
    await store.put(some(*range(100, 104)), [], unused)
    clock.now_s += 1
    await store.put(some(*range(104, 107)), [])
    await store.evict()
    assert await known(store, first), "it was used lately"


async def test_old_vectors_count_as_absent_and_go(database: AsyncEngine, clock: Clock) -> None:
    store = await opened(database, clock, max_age_s=100)
    await store.put(some("old"), [Text("role:r", key("old"), "m", b"m", "old text")])
    clock.now_s += 60
    await store.put(some("young"), [])
    clock.now_s += 60
    assert await known(store, "old", "young") == {"young"}
    assert await store.evict() == 1
    assert await stored_bytes(database) == VECTOR_BYTES
    assert await store.searchable("role:r", b"m") == {}


async def test_a_row_that_holds_something_else_is_damaged_too(database: AsyncEngine, store: VectorStore) -> None:
    if database.dialect.name == "postgresql":
        pytest.skip("PostgreSQL's columns hold what they are made for")
    await store.put(some("a", "b"), [])
    for column, value in (("tokens", "'x'"), ("vector", "'abc'"), ("vector", "5"), ("checksum", "'x'")):
        async with database.begin() as connection:
            await connection.execute(text(f"UPDATE cached_vectors_1 SET {column} = {value}"))
        assert await known(store, "a", "b") == set()


@pytest.mark.parametrize("column", ["vector", "checksum", "tokens", "model"])
async def test_a_damaged_row_counts_as_absent_and_is_counted(
    store: VectorStore, database: AsyncEngine, column: str
) -> None:
    await store.put(some("a", "b"), [])
    damage: Any = {"tokens": 5, "model": "another"}.get(column, b"\1" * (VECTOR_BYTES if column == "vector" else 16))
    async with database.begin() as connection:
        await connection.execute(update(vectors).where(vectors.c.key == key("a")).values({column: damage}))
    assert await known(store, "a", "b") == {"b"}
    assert store.damaged == 1
    await store.put(some("a"), [])
    assert await known(store, "a", "b") == {"a", "b"}, "and it is made anew"


async def test_what_is_kept_is_told_by_model_and_can_be_deleted(store: VectorStore, clock: Clock) -> None:
    await store.put(some("a", "b", model="one"), [Text("role:r", key("a"), "one", b"one", "100% a_text")])
    clock.now_s += 100
    await store.put(some("c", model="two"), [Text("key:k", key("c"), "two", b"two", "another")])
    assert [tuple(kept) for kept in await store.kept()] == [
        ("one", 2, 2 * VECTOR_BYTES, 1_800_000_000, 1_800_000_000),
        ("two", 1, VECTOR_BYTES, 1_800_000_100, 1_800_000_100),
    ]
    assert await store.delete(prefix="100_") == 0, "no wildcards"
    assert await store.delete(prefix="100%", model="two") == 0
    assert await store.delete(prefix="100% A") == 0, "letters are as they are"
    assert await store.delete(prefix="100%") == 1
    assert await known(store, "a", "b", "c") == {"b", "c"}
    assert await store.searchable("role:r", b"one") == {}
    assert await store.delete(older_than_s=50) == 1
    assert await store.delete(model="two") == 1
    assert await store.kept() == []


async def test_texts_are_listed_by_owner_and_page(store: VectorStore) -> None:
    words = ["b", "a", "ab", "ñ", "a'; --"]
    await store.put(
        some(*words), [Text(f"role:{owner}", key(word), "m", b"m", word) for owner in "yx" for word in words]
    )
    assert set((await store.searchable("role:x", b"m")).values()) == set(words)
    assert await store.searchable("role:z", b"m") == {}
    assert await store.searchable("role:x", b"other") == {}
    pages, after = [], None
    while rows := await store.list_texts(limit=3, after=after):
        pages += [(row.owner, row.text) for row in rows]
        after = (*pages[-1], rows[-1].key)
    assert len(pages) == len(set(pages)) == 10
    assert {row.text for row in await store.list_texts(limit=100, prefix="a", owner="role:x")} == {"a", "ab", "a'; --"}


async def test_the_tables_are_of_this_version(store: VectorStore, database: AsyncEngine) -> None:
    async with database.connect() as connection:
        for table in (vectors, texts):
            assert (await connection.execute(text(f"SELECT count(*) FROM {table.name}"))).scalar() == 0
