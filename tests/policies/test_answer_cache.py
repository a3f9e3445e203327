"""Kept answers, in SQLite and PostgreSQL."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from backends.errors import InvalidRequest
from backends.wire import Body
from policies.answer_cache import AnswerCache, AnswerCacheSettings, Wish, answers, is_finished, key_of, may_be_kept

pytestmark = pytest.mark.anyio


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(database: AsyncEngine, clock: Clock) -> AnswerCache:
    return AnswerCache(
        database, AnswerCacheSettings(enabled=True, max_mb=1, max_age_s=100, max_answer_kb=300), clock=clock
    )


async def test_an_answer_comes_back_as_it_was_for_as_long_as_it_may(cache: AnswerCache, clock: Clock) -> None:
    assert await cache.get(b"a") is None
    await cache.put(b"a", b"one\0\xff")
    await cache.put(b"a", b"two\0\xff")
    assert await cache.get(b"a") == b"two\0\xff"
    assert await cache.size() == (1, 5)
    clock.now_s += 101
    assert await cache.get(b"a") is None
    await cache.put(b"b", b"x")
    assert await cache.size() == (1, 1), "what is too old has gone"
    assert await cache.clear() == 1


async def test_the_oldest_go_when_there_are_too_many_and_large_ones_are_not_kept(
    cache: AnswerCache, clock: Clock
) -> None:
    for number in range(6):
        clock.now_s += 1
        await cache.put(bytes([number]), b"x" * 250 * 1024)
    await cache.put(b"large", b"x" * 301 * 1024)
    kept = [number for number in range(6) if await cache.get(bytes([number])) is not None]
    assert kept == [2, 3, 4, 5]
    assert await cache.get(b"large") is None


async def test_a_damaged_answer_is_not_used(
    cache: AnswerCache, database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    await cache.put(b"a", b"one")
    async with database.begin() as connection:
        await connection.execute(update(answers).values(answer=b"two"))
    assert await cache.get(b"a") is None
    assert "damaged" in caplog.text


async def test_a_database_that_is_none_costs_hits_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x.db").write_bytes(b"no database " * 500)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.db")
    cache = AnswerCache(engine, AnswerCacheSettings(enabled=True))
    await cache.put(b"a", b"one")
    assert await cache.get(b"a") is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    await engine.dispose()


async def test_several_write_at_the_same_time(cache: AnswerCache) -> None:
    await asyncio.gather(*(cache.put(bytes([number % 5]), b"same") for number in range(20)))
    assert await cache.size() == (5, 20)


def body(**fields: Any) -> Body:
    return Body(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("fields", "asked", "kept"),
    [
        ({"temperature": 0}, False, True),
        ({"temperature": 0.0}, False, True),
        ({"temperature": 0.1}, False, False),
        ({}, False, False),
        ({}, True, True),
        ({"temperature": 1}, True, True),
    ],
)
def test_what_would_be_the_same_again_is_kept_and_what_a_client_asks_for(
    fields: dict[str, Any], asked: bool, kept: bool
) -> None:
    assert may_be_kept(body(**fields), Wish(asked_for=asked)) is kept
    if not asked:
        with pytest.raises(InvalidRequest):
            may_be_kept(body(temperature="hot"), Wish())


def test_the_key_is_everything_that_matters_and_nothing_else() -> None:
    base = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    same = [base, base | {"user": "somebody"}, base | {"metadata": {"tags": ["x"]}}]
    others = [base | {name: 1} for name in ("seed", "n", "max_tokens", "stream", "unknown")]
    assert len({key_of(body(**fields), ["k"]) for fields in same}) == 1
    keys = {
        key_of(body(**fields), parts)
        for fields in (base, *others)
        for parts in (["k"], ["other"], ["k", ""], ["k", "x"])
    }
    assert len(keys) == 6 * 4
    assert key_of(body(**base), ["ab", "c"]) != key_of(body(**base), ["a", "bc"])


def test_an_answer_that_was_filtered_is_not_finished() -> None:
    assert is_finished(b'{"choices": [{"finish_reason": "stop"}]}')
    assert not is_finished(b'{"choices": [{"finish_reason": "content_filter"}]}')
