import logging
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from policies.generations import POLL_S, Watcher, bump

pytestmark = pytest.mark.anyio


class Reloads:
    """Counts its calls; fails in those that it is told to."""

    def __init__(self, *, fails: int = 0) -> None:
        self.done = 0
        self._fails = fails

    async def __call__(self) -> None:
        if self._fails:
            self._fails -= 1
            raise OperationalError("SELECT", None, Exception("disk I/O error"))
        self.done += 1


async def change(database: AsyncEngine, kind: str) -> None:
    async with database.begin() as connection:
        await bump(connection, kind)


async def test_a_kind_is_reloaded_once_for_each_change_that_was_seen(database: AsyncEngine) -> None:
    keys, roles, watcher = Reloads(), Reloads(), Watcher(database)
    watcher.on_change("keys", keys)
    watcher.on_change("roles", roles)
    await watcher.poll()
    assert (keys.done, roles.done) == (0, 0)
    await change(database, "keys")
    await watcher.poll()
    await watcher.poll()
    assert (keys.done, roles.done) == (1, 0)
    await change(database, "keys")
    await change(database, "keys")
    await change(database, "roles")
    await change(database, "nobody listens")
    await watcher.poll()
    assert (keys.done, roles.done) == (2, 1)


async def test_a_reload_that_failed_is_tried_again(database: AsyncEngine) -> None:
    keys, watcher = Reloads(fails=1), Watcher(database)
    watcher.on_change("keys", keys)
    await change(database, "keys")
    with pytest.raises(OperationalError):
        await watcher.poll()
    await watcher.poll()
    assert keys.done == 1


async def test_a_change_that_is_rolled_back_is_none(database: AsyncEngine) -> None:
    keys, watcher = Reloads(), Watcher(database)
    watcher.on_change("keys", keys)
    with pytest.raises(RuntimeError):
        async with database.begin() as connection:
            await bump(connection, "keys")
            raise RuntimeError
    await watcher.poll()
    assert keys.done == 0


class StopAsking(Exception):
    pass


class Naps:
    """A sleep that takes no time, notes how long it would have been and does something on the way."""

    def __init__(self, *steps: str, database: AsyncEngine) -> None:
        self.seconds: list[float] = []
        self._steps = list(steps)
        self._database = database

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if not self._steps:
            raise StopAsking
        async with self._database.begin() as connection:
            await connection.execute(text(self._steps.pop(0)))


async def test_a_database_that_does_not_answer_is_said_once_and_asked_again(
    database: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Reloads()
    await change(database, "keys")
    naps = Naps(
        "ALTER TABLE generations RENAME TO gone",
        "SELECT 1",
        "ALTER TABLE gone RENAME TO generations",
        "ALTER TABLE generations RENAME TO gone",
        database=database,
    )
    watcher = Watcher(database, sleep=naps)
    watcher.on_change("keys", keys)
    with caplog.at_level(logging.ERROR), pytest.raises(StopAsking):
        await watcher.run()
    assert naps.seconds == [POLL_S] * 5
    assert keys.done == 1
    assert [record.message.startswith("the database does not answer") for record in caplog.records] == [True, True]


async def test_a_file_that_is_no_database_is_an_error_of_the_poll(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"these are notes and no database " * 100)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'notes.txt'}")
    with pytest.raises(DatabaseError):
        await Watcher(engine).poll()
    await engine.dispose()
