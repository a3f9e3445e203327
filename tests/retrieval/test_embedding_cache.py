"""The cache in front of the store: memory, writing behind, and faults that never reach an answer."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from retrieval.embedding_cache import MAX_PENDING, EmbeddingCache
from retrieval.vector_memory import OVERHEAD_BYTES, CachedVector, VectorMemory
from retrieval.vector_store import Entry, Limits, Text, VectorStore
from tests.retrieval.test_vector_store import Clock, key, known, some

pytestmark = pytest.mark.anyio


def cache_over(database: AsyncEngine, *, memory_bytes: int = 10**6, **limits: Any) -> EmbeddingCache:
    store = VectorStore(database, Limits(**({"max_bytes": 10**8} | limits)), clock=Clock())
    return EmbeddingCache(store, VectorMemory(max_vectors=100, max_bytes=memory_bytes))


@pytest.fixture
async def cache(database: AsyncEngine) -> EmbeddingCache:
    cache = cache_over(database)
    await cache.open()
    return cache


@pytest.fixture
async def broken_database(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 1000)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/broken.db")
    yield engine
    await engine.dispose()


async def hits(cache: EmbeddingCache, *names: object) -> set[object]:
    found = await cache.get([key(name) for name in names], "m")
    return {name for name in names if key(name) in found}


async def test_what_is_put_is_there_at_once_and_in_the_store_after_a_flush(cache: EmbeddingCache) -> None:
    cache.put(some("a", "b"))
    assert await hits(cache, "a", "b", "c") == {"a", "b"}
    assert await known(cache.store, "a", "b") == set()
    assert await cache.flush()
    assert await known(cache.store, "a", "b") == {"a", "b"}
    assert cache.waiting == 0
    assert (cache.hits["m"], cache.misses["m"]) == (2, 1)


async def test_what_has_left_memory_is_found_before_and_after_it_is_written(database: AsyncEngine) -> None:
    cache = cache_over(database, memory_bytes=0)
    await cache.open()
    cache.put(some("a"))
    assert len(cache.memory) == 0
    assert await hits(cache, "a") == {"a"}
    await cache.flush()
    assert await hits(cache, "a") == {"a"}


async def test_the_writer_writes_by_itself(cache: EmbeddingCache) -> None:
    writer = asyncio.create_task(cache.run())
    cache.put(some(*range(1500)))  # enough not to wait for the clock
    while cache.waiting:
        await asyncio.sleep(0.01)
    async with cache._writing:  # it has ended writing
        assert await known(cache.store, 0, 1499) == {0, 1499}
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)


async def test_a_store_that_cannot_be_used_costs_hits_and_nothing_else(
    broken_database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_over(broken_database)
    await cache.open()
    assert await hits(cache, "a") == set()
    cache.put(some("a"))
    assert not await cache.flush()
    assert await hits(cache, "a") == {"a"}, "memory still works"
    assert cache.waiting == 1, "it may be written when the store is back"
    assert cache.faults["read"] == 1
    assert cache.faults["write"] >= 2
    words = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(words) == 2, "each kind once a minute"
    assert all("the embedding cache cannot be" in word for word in words)


async def test_what_waits_is_bounded(broken_database: AsyncEngine) -> None:
    cache = cache_over(broken_database)
    value = CachedVector(np.ones(8, np.float32), 1)
    cache.put(Entry(key(number), "m", value) for number in range(MAX_PENDING + 10))
    assert cache.waiting == MAX_PENDING
    assert cache.faults["dropped"] == 10


async def test_a_row_that_no_database_takes_is_left_out_and_the_others_are_written(cache: EmbeddingCache) -> None:
    vector = CachedVector(np.ones(8, np.float32), 2**70)
    cache.put([*some(*range(9)), Entry(key("bad"), "m", vector), *some(*range(20, 29))])
    assert await cache.flush()
    assert await known(cache.store, *range(9), *range(20, 29), "bad") == {*range(9), *range(20, 29)}
    assert cache.faults["dropped"] == 1
    assert cache.waiting == 0


async def test_texts_with_nul_are_not_kept_and_stop_nobody(cache: EmbeddingCache) -> None:
    cache.put(some("a", "b"))
    cache.keep([Text("role:r", key("a"), "m", b"s", "with \0 in it"), Text("role:r", key("b"), "m", b"s", "without")])
    assert await cache.flush()
    assert list((await cache.store.searchable("role:r", b"s")).values()) == ["without"]


async def test_what_waits_is_bounded_in_bytes_too(broken_database: AsyncEngine) -> None:
    cache = cache_over(broken_database)
    cache.keep(Text("role:r", key(number), "m", b"s", "x" * 2**20) for number in range(100))
    assert cache.faults["dropped"] >= 36
    assert len(cache._texts) <= 64


async def test_a_store_that_was_locked_at_the_start_is_opened_later(database: AsyncEngine) -> None:
    cache = cache_over(database)  # nobody has opened it
    cache.put(some("a"))
    assert await cache.flush()
    assert await known(cache.store, "a") == {"a"}


async def test_texts_go_when_they_are_not_kept_any_more(database: AsyncEngine) -> None:
    cache = cache_over(database)
    await cache.open()
    cache.put(some("a"))
    cache.keep([Text("role:r", key("a"), "m", b"s", "a text")])
    await cache.flush()
    later = EmbeddingCache(cache.store, VectorMemory(max_vectors=1, max_bytes=10**6), keep_text=False)
    await later.open()
    assert await later.store.searchable("role:r", b"s") == {}
    assert await known(later.store, "a") == {"a"}


async def test_a_writer_that_is_stopped_writes_what_waits(cache: EmbeddingCache) -> None:
    writer = asyncio.create_task(cache.run())
    await asyncio.sleep(0)
    cache.put(some("a"))
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    assert await known(cache.store, "a") == {"a"}


async def test_what_was_forgotten_does_not_come_back_with_the_store(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = cache.store.put

    async def fail(*_: Any) -> None:
        raise OperationalError("insert", {}, Exception("database is locked"))

    cache.put(some("a"))
    monkeypatch.setattr(cache.store, "put", fail)
    await cache.forget()
    monkeypatch.setattr(cache.store, "put", put)
    assert await cache.flush()
    assert await hits(cache, "a") == set()


async def test_a_damaged_row_is_counted_and_computed_again(cache: EmbeddingCache, database: AsyncEngine) -> None:
    cache.put(some("a"))
    await cache.flush()
    cache.memory.clear()
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE cached_vectors_1 SET tokens = tokens + 1")
    assert await hits(cache, "a") == set()
    assert cache.faults["damaged"] == 1


async def test_a_store_that_hangs_is_not_waited_for(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(cache.store, "get", hang)
    monkeypatch.setattr("retrieval.embedding_cache.READ_TIMEOUT_S", 0.01)
    assert await hits(cache, "a") == set()
    assert cache.faults["read"] == 1


async def test_a_write_that_fails_is_tried_again_with_what_came_since(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = cache.store.put, [OperationalError("insert", {}, Exception("database is locked"))]

    async def sometimes(*arguments: Any) -> None:
        if failures:
            cache.put(some("late"))
            raise failures.pop()
        await put(*arguments)

    monkeypatch.setattr(cache.store, "put", sometimes)
    cache.put(some("early"))
    assert not await cache.flush()
    assert await cache.flush()
    assert await known(cache.store, "early", "late") == {"early", "late"}


async def test_forgetting_reaches_memory_and_what_waits(cache: EmbeddingCache) -> None:
    cache.put(some("a", model="one"))
    cache.put(some("b", model="two"))
    assert await cache.forget(model="one") == 1
    assert await hits(cache, "a", "b") == {"b"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=60), st.integers(1, 6), st.integers(0, 4000))
def test_memory_holds_the_last_used_within_its_bounds(
    operations: list[tuple[int, int]], max_vectors: int, max_bytes: int
) -> None:
    memory = VectorMemory(max_vectors=max_vectors, max_bytes=max_bytes)
    order: list[int] = []
    sizes: dict[int, int] = {}
    for name, size in operations:
        memory.put(key(name), CachedVector(np.zeros(size, np.float32), 0))
        order = [other for other in order if other != name] + [name]
        sizes[name] = size * 4 + OVERHEAD_BYTES
        while order and (len(order) > max_vectors or sum(sizes[one] for one in order) > max_bytes):
            order.pop(0)
        assert len(memory) == len(order)
        assert memory.bytes == sum(sizes[one] for one in order)
    assert all(memory.get(key(name)) is not None for name in order)
