import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from backends.base import EMBEDDINGS, Call
from backends.wire import Body
from retrieval.embedding import Embedder
from retrieval.embedding_cache import KEYS_PER_QUERY, TOUCH_AFTER_S, CachedVector, EmbeddingCache, rows
from tests.retrieval.fakes import WordsBackend

pytestmark = pytest.mark.anyio

VECTOR_BYTES = 32

CALL = Call(EMBEDDINGS, Body(b'{"model": "m"}'), "r", "m")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(database: AsyncEngine, clock: Clock) -> EmbeddingCache:
    return EmbeddingCache(database, max_bytes=20 * VECTOR_BYTES, clock=clock)


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def some(*names: object) -> dict[bytes, CachedVector]:
    return {
        key(name): CachedVector(np.random.default_rng(number + 1).standard_normal(8).astype(np.float32), number)
        for number, name in enumerate(names)
    }


async def stored_bytes(database: AsyncEngine) -> int:
    async with database.connect() as connection:
        return (await connection.execute(select(func.coalesce(func.sum(func.length(rows.c.vector)), 0)))).scalar_one()


async def test_a_vector_comes_back_with_the_same_bits_and_tokens(cache: EmbeddingCache) -> None:
    vectors = some("a", "b")
    strange = np.array([0.0, -0.0, 1e-45, 3.4e38, -1.5, np.pi, 1 / 3, 2**-126], np.float32)
    vectors[key("c")] = CachedVector(strange, 7)
    await cache.put(vectors)
    found = await cache.get([key("c"), key("a"), key("nobody"), key("b"), key("a")])
    assert {name: (one.vector.tobytes(), one.tokens) for name, one in found.items()} == {
        name: (one.vector.tobytes(), one.tokens) for name, one in vectors.items()
    }
    assert all(one.vector.dtype == np.float32 and one.vector.flags.writeable for one in found.values())


async def test_putting_again_replaces(cache: EmbeddingCache, database: AsyncEngine) -> None:
    await cache.put(some("a"))
    await cache.put({key("a"): CachedVector(np.ones(8, np.float32), 99)})
    (one,) = (await cache.get([key("a")])).values()
    assert (one.vector.tolist(), one.tokens) == ([1.0] * 8, 99)
    assert await stored_bytes(database) == VECTOR_BYTES


async def test_two_writers_of_the_same_vectors_do_not_wait_for_each_other(
    database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = some(*range(200))
    backwards = dict(reversed(vectors.items()))
    caches = [EmbeddingCache(database, max_bytes=10**9) for _ in range(2)]
    for _ in range(5):
        await asyncio.gather(caches[0].put(vectors), caches[1].put(backwards))
    assert caplog.records == []
    assert set(await caches[0].get(list(vectors))) == set(vectors)


async def test_more_keys_than_one_query_takes(database: AsyncEngine) -> None:
    cache = EmbeddingCache(database, max_bytes=10**9)
    vectors = some(*range(2 * KEYS_PER_QUERY + 10))
    await cache.put(vectors)
    assert set(await cache.get(list(vectors))) == set(vectors)


async def test_the_bytes_stay_within_the_bound(cache: EmbeddingCache, database: AsyncEngine, clock: Clock) -> None:
    for number in range(0, 60, 3):
        clock.now_s += 1
        await cache.put(some(*range(number, number + 3)))
        assert await stored_bytes(database) <= 20 * VECTOR_BYTES
    assert await stored_bytes(database) >= 15 * VECTOR_BYTES
    assert set(await cache.get([key(59), key(58), key(57)])) == {key(59), key(58), key(57)}
    assert await cache.get([key(0), key(1)]) == {}


async def test_one_write_larger_than_the_bound_does_not_break_it(cache: EmbeddingCache, database: AsyncEngine) -> None:
    await cache.put(some(*range(100)))
    assert 0 < await stored_bytes(database) <= 20 * VECTOR_BYTES


async def test_what_an_earlier_process_stored_counts(database: AsyncEngine, clock: Clock) -> None:
    for number in range(4):
        clock.now_s += 1
        cache = EmbeddingCache(database, max_bytes=20 * VECTOR_BYTES, clock=clock)
        await cache.put(some(*range(number * 10, number * 10 + 10)))
    assert await stored_bytes(database) <= 20 * VECTOR_BYTES


async def test_what_was_used_lately_stays_and_the_longest_unused_goes(
    cache: EmbeddingCache, database: AsyncEngine, clock: Clock
) -> None:
    for number in range(20):
        clock.now_s += 1
        await cache.put(some(number))
    clock.now_s += TOUCH_AFTER_S
    assert set(await cache.get([key(0)])) == {key(0)}
    clock.now_s += 1
    await cache.put(some("new"))
    assert set(await cache.get([key(0), key(1), key("new")])) == {key(0), key("new")}


async def test_a_hit_is_noted_once_an_hour(cache: EmbeddingCache, database: AsyncEngine, clock: Clock) -> None:
    async def used_at() -> int:
        async with database.connect() as connection:
            return (await connection.execute(select(rows.c.used_at))).scalar_one()

    await cache.put(some("a"))
    first = await used_at()
    clock.now_s += TOUCH_AFTER_S
    await cache.get([key("a")])
    assert await used_at() == first
    clock.now_s += 1
    await cache.get([key("a")])
    assert await used_at() == first + TOUCH_AFTER_S + 1


@pytest.mark.parametrize(
    "damage",
    [
        {"vector": b"\0" * VECTOR_BYTES},
        {"vector": b"short"},
        {"vector": b""},
        {"checksum": b"\0" * 16},
        {"tokens": 4711},
        {"key": key("another text")},
        {"tokens": -1},
    ],
    ids=["vector", "length", "empty", "checksum", "tokens", "key", "negative tokens"],
)
async def test_a_damaged_row_is_not_used_and_the_others_are(
    cache: EmbeddingCache, database: AsyncEngine, caplog: pytest.LogCaptureFixture, damage: dict[str, Any]
) -> None:
    await cache.put(some("a", "b"))
    async with database.begin() as connection:
        await connection.execute(update(rows).where(rows.c.key == key("a")).values(damage))
    with caplog.at_level(logging.ERROR):
        found = await cache.get([key("a"), key("b"), key("another text")])
    assert set(found) == {key("b")}
    assert "damaged vector" in caplog.text


async def test_a_damaged_row_is_made_anew(cache: EmbeddingCache, database: AsyncEngine) -> None:
    backend = WordsBackend(dimensions=8)
    embedder = Embedder(backend, cache)
    first = await embedder.embed(["a text"], CALL, scope="all")
    async with database.begin() as connection:
        await connection.execute(update(rows).values(vector=b"\x01" * VECTOR_BYTES))
    for hits in (0, 1):
        again = await embedder.embed(["a text"], CALL, scope="all")
        assert (again.hits, again.vectors[0].tobytes()) == (hits, first.vectors[0].tobytes())


@pytest.fixture(params=["no table", "no database"])
async def broken_database(
    request: pytest.FixtureRequest, database: AsyncEngine, tmp_path: Path
) -> AsyncIterator[AsyncEngine]:
    if request.param == "no table":
        async with database.begin() as connection:
            await connection.execute(text("DROP TABLE embedding_cache"))
        yield database
        return
    file = tmp_path / "notes.txt"
    file.write_bytes(b"these are notes and no database " * 100)
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
    yield engine
    await engine.dispose()


async def test_with_a_broken_database_vectors_are_computed(
    broken_database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder(WordsBackend(), EmbeddingCache(broken_database, max_bytes=1000))
    plain = await Embedder(WordsBackend()).embed(["a", "b"], CALL, scope="all")
    for _ in range(2):
        made = await embedder.embed(["a", "b"], CALL, scope="all")
        assert [one.tobytes() for one in made.vectors] == [one.tobytes() for one in plain.vectors]
        assert made.hits == 0
    assert "cannot be read" in caplog.text
    assert "cannot be written" in caplog.text
