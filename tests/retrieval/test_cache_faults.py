"""What happens to the embedding cache on a bad day: answers stay right, the fault is counted, nothing wrong is served."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from backends.base import EMBEDDINGS, Call
from backends.wire import Body
from gateway import database as database_module
from gateway.database import CACHE_FILE, cache_database
from retrieval.embedding import Embedder, Use
from retrieval.embedding_cache import EmbeddingCache
from tests.conftest import ROOT
from tests.retrieval.fakes import WordsBackend, vector_of
from tests.retrieval.test_embedding_cache import cache_over, hits
from tests.retrieval.test_vector_store import key, some

pytestmark = pytest.mark.anyio

KILLS = 8

WRITER = """
import asyncio, sys
from pathlib import Path
import numpy as np
from sqlalchemy.ext.asyncio import create_async_engine
from gateway.database import cache_database
from retrieval.vector_memory import CachedVector
from retrieval.vector_store import Entry
from tests.retrieval.test_embedding_cache import cache_over
from tests.retrieval.test_vector_store import key

async def main():
    main_database = create_async_engine("sqlite+aiosqlite://")
    cache = cache_over(cache_database(main_database, Path(sys.argv[1])))
    await cache.open()
    number = int(sys.argv[2])
    while True:
        for _ in range(50):
            number += 1
            cache.put([Entry(key(number), "m", CachedVector(np.full(64, number, np.float32), number))])
        assert await cache.flush()
        print(number, flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def cache_in(home: Path) -> AsyncIterator[tuple[EmbeddingCache, AsyncEngine]]:
    main_database = create_async_engine("sqlite+aiosqlite://")
    engine = cache_database(main_database, home)
    cache = cache_over(engine)
    await cache.open()
    yield cache, engine
    await engine.dispose()
    await main_database.dispose()


async def right(cache: EmbeddingCache, *texts: str) -> int:
    """Asks for these texts through the cache; the vectors are those that the model makes. How many came from the cache."""
    call = Call(EMBEDDINGS, Body(b'{"model": "m"}'), "r", "m")
    made = await Embedder(WordsBackend(), cache).embed(list(texts), call, Use("all"))
    assert [one.tobytes() for one in made.vectors] == [vector_of(text, 64, "one").tobytes() for text in texts]
    return made.hits


async def test_a_process_killed_while_it_writes_leaves_whole_rows_or_none(tmp_path: Path) -> None:
    written = 0
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(written)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        for _ in range(3):
            line = await asyncio.to_thread(writer.stdout.readline)
            assert line, "the writer ended by itself"
        written = int(line)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        async with cache_in(tmp_path) as (cache, _):
            keys = {key(number): number for number in range(1, written + 200)}
            found = await cache.get(list(keys), "m")
            assert set(range(1, written + 1)) <= {keys[one] for one in found}, "what was written is there"
            for one, value in found.items():
                assert value.tokens == keys[one]
                assert (value.vector == np.float32(keys[one])).all()
            assert cache.faults == {}


async def test_a_full_disk_costs_hits_and_nothing_else(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as (cache, engine):
        assert await right(cache, "early") == 0
        await cache.flush()
        async with engine.connect() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar()
        await engine.dispose()
        # SQLite's own way to be full, which it forgets with the connection.
        event.listen(engine.sync_engine, "connect", lambda made, _: made.execute(f"PRAGMA max_page_count = {pages}"))
        cache.put(some(*range(500)))
        assert not await cache.flush()
        assert cache.faults["write"] >= 1
        assert await right(cache, "early", "late") == 1
        cache.memory.clear()
        assert await hits(cache, 1, 2) == {1, 2}, "they wait for room"


async def test_a_database_that_is_locked_is_not_waited_for_by_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 100)
    async with cache_in(tmp_path) as (cache, _):
        assert await right(cache, "before") == 0
        assert await cache.flush()
        with closing(sqlite3.connect(tmp_path / CACHE_FILE, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            cache.memory.clear()
            assert await right(cache, "before", "meanwhile") == 1, "who reads does not wait for who writes"
            assert not await cache.flush()
            assert cache.faults["write"] == 1
            other.execute("ROLLBACK")
        assert await cache.flush()
        cache.memory.clear()
        assert await right(cache, "before", "meanwhile") == 2


@pytest.mark.parametrize("whole_file", [True, False])
async def test_a_file_that_was_overwritten_is_put_aside_or_read_around(tmp_path: Path, whole_file: bool) -> None:
    texts = [f"text number {number}" for number in range(300)]
    async with cache_in(tmp_path) as (cache, _):
        await right(cache, *texts)
        await cache.flush()
    path = tmp_path / CACHE_FILE
    data = bytearray(path.read_bytes())
    start = 0 if whole_file else len(data) // 2
    data[start : start + 20_000] = b"\xaa" * 20_000
    path.write_bytes(data)
    async with cache_in(tmp_path) as (cache, _):
        found = await right(cache, *texts)
        assert found < len(texts)
        assert whole_file or cache.faults["read"] + cache.faults["damaged"] > 0
        assert path.with_suffix(".broken").exists() is whole_file
        assert await right(cache, *texts) == len(texts), "memory has them now"
        broken_inside = cache.faults["read"] > 0
    async with cache_in(tmp_path) as (cache, _):
        assert path.with_suffix(".broken").exists() is (whole_file or broken_inside), "at the next start at the latest"
        await right(cache, *texts)
        assert await cache.flush()
        cache.memory.clear()
        assert await right(cache, *texts) == len(texts), "the new file is whole"
        assert cache.faults["read"] == 0


async def test_the_cache_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    async with cache_in(tmp_path) as (cache, _):
        await right(cache, "a")
        await cache.flush()
    for file in tmp_path.iterdir():
        file.unlink()
    async with cache_in(tmp_path) as (cache, _):
        assert await right(cache, "a") == 0
        assert await cache.flush()


async def test_a_cache_that_is_locked_at_the_start_is_left_alone_and_used_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MS", 100)
    async with cache_in(tmp_path) as (cache, _):
        await right(cache, "a")
        await cache.flush()
    with closing(sqlite3.connect(tmp_path / CACHE_FILE, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        async with cache_in(tmp_path) as (cache, _):
            assert await right(cache, "a") == 0
            other.execute("ROLLBACK")
            other.close()
            assert await cache.flush()
            cache.memory.clear()
            assert await right(cache, "a") == 1
    assert not (tmp_path / CACHE_FILE).with_suffix(".broken").exists()
