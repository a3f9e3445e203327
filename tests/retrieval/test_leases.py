"""Who works on what."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import event, select, true, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.base import Answer, Call
from retrieval import leases as leases_module
from retrieval.building import AT_ONCE
from retrieval.catalog import NewMember, Stored
from retrieval.errors import Overtaken
from retrieval.leases import LEASE_S, Leases
from retrieval.tables import members
from tests.retrieval.fakes import WordsBackend
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def stored(database: AsyncEngine, tmp_path: Path) -> Stored:
    """Three members."""
    catalog = Shelf(database, tmp_path).catalog
    stored = await catalog.create(name="docs", owner="role", embed="words")
    await catalog.attach(stored.id, [NewMember(name, "file", name, {}, {}) for name in "abc"])
    return stored


@pytest.fixture
async def ids(database: AsyncEngine, stored: Stored) -> list[int]:
    async with database.connect() as connection:
        return list((await connection.execute(select(members.c.id).order_by(members.c.id))).scalars().all())


@pytest.fixture
def one(database: AsyncEngine, clock: Clock) -> Leases:
    return Leases(database, clock=clock)


@pytest.fixture
def other(database: AsyncEngine, clock: Clock) -> Leases:
    """Of another gateway."""
    return Leases(database, clock=clock)


async def take(leases: Leases, limit: int = 10) -> list[int]:
    return await leases.claim(members, members.c.status == "in_progress", limit=limit)


async def claimed(database: AsyncEngine, id_: int) -> tuple[str, int]:
    async with database.connect() as connection:
        query = select(members.c.claimed_by, members.c.claimed_until).where(members.c.id == id_)
        row = (await connection.execute(query)).one()
        return row.claimed_by, row.claimed_until


class Renewals:
    """Waits for what the database was told, and can make it fail."""

    def __init__(self, database: AsyncEngine) -> None:
        self.seen = asyncio.Queue[None]()
        self.fails = 0
        event.listen(database.sync_engine, "before_cursor_execute", self._before)
        event.listen(database.sync_engine, "commit", self._commit)
        self._written = False

    def _before(self, _: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE members SET claimed_until"):
            if self.fails:
                self.fails -= 1
                self.seen.put_nowait(None)
                raise OperationalError(statement, {}, Exception("the database is away"))
            self._written = True

    def _commit(self, _: object) -> None:
        if self._written:
            self._written = False
            self.seen.put_nowait(None)

    async def wait(self, count: int = 3) -> None:
        """For so many from now on: the first one may have begun before."""
        while not self.seen.empty():
            self.seen.get_nowait()
        for _ in range(count):
            await self.seen.get()


class Hanging(WordsBackend):
    """Does not answer until it is told to; says who begins to wait and who leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.left = asyncio.Queue[None](), asyncio.Queue[None]()
        self.answers = asyncio.Event()

    async def complete(self, call: Call) -> Answer:
        self.begun.put_nowait(None)
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.left.put_nowait(None)
            raise
        return await super().complete(call)


@pytest.fixture
async def renewals(database: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Renewals]:
    monkeypatch.setattr(leases_module, "RENEW_S", 0.001)
    yield Renewals(database)


async def test_what_is_claimed_is_nobody_elses(one: Leases, other: Leases, ids: list[int]) -> None:
    assert await take(one, 2) == ids[:2]
    assert await take(other) == ids[2:]
    assert await take(one) == []
    assert await take(other) == []
    assert one.holder != other.holder


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_at_most_so_many_are_claimed(one: Leases, ids: list[int], limit: int) -> None:
    assert await take(one, limit) == ids[:limit]


async def test_only_what_was_asked_for_is_claimed(database: AsyncEngine, one: Leases, ids: list[int]) -> None:
    async with database.begin() as connection:
        await connection.execute(update(members).where(members.c.id == ids[1]).values(status="completed"))
    assert await take(one) == [ids[0], ids[2]]
    assert await one.claim(members, members.c.id == ids[1], limit=1) == [ids[1]]
    assert await one.claim(members, members.c.id == -1, limit=1) == []


async def test_a_claim_ends_with_its_holder(one: Leases, other: Leases, ids: list[int], clock: Clock) -> None:
    assert await take(one) == ids
    clock.now_s += LEASE_S
    assert await take(other) == [], "not before"
    clock.now_s += 0.001
    assert await take(other) == ids
    assert await take(one) == []


async def test_what_is_released_is_free_at_once(
    database: AsyncEngine, one: Leases, other: Leases, ids: list[int]
) -> None:
    await take(one)
    await one.release(members, ids[1])
    assert await claimed(database, ids[1]) == ("", 0)
    assert await take(other) == [ids[1]]


async def test_nobody_releases_what_another_one_holds(one: Leases, other: Leases, ids: list[int], clock: Clock) -> None:
    await take(one)
    await other.release(members, ids[0])
    assert await take(other) == []
    clock.now_s += LEASE_S + 1
    assert await take(other) == ids
    await one.release(members, ids[0])
    assert await take(one) == [], "a claim that was lost is not given back"
    await one.release(members, 10**9)


async def test_many_that_ask_at_once_share_what_there_is(
    database: AsyncEngine, stored: Stored, ids: list[int], clock: Clock, tmp_path: Path
) -> None:
    new = [NewMember(f"n{number}", "file", "n", {}, {}) for number in range(20)]
    await Shelf(database, tmp_path).catalog.attach(stored.id, new)
    many = [Leases(database, clock=clock) for _ in range(6)]
    got: list[int] = []
    while some := [id_ for found in await asyncio.gather(*(take(one, 3) for one in many)) for id_ in found]:
        got += some
    assert len(got) == len(set(got)) == 23


async def test_a_claim_is_renewed_as_long_as_the_work_goes_on(
    database: AsyncEngine, one: Leases, other: Leases, ids: list[int], clock: Clock, renewals: Renewals
) -> None:
    await take(one, 1)
    async with one.held(members, ids[0]):
        for _ in range(5):
            clock.now_s += LEASE_S - 1
            await renewals.wait()
            assert await claimed(database, ids[0]) == (one.holder, int((clock.now_s + LEASE_S) * 1000))
            assert ids[0] not in await take(other)
    _, until = await claimed(database, ids[0])
    clock.now_s = until / 1000 + 1
    assert ids[0] in await take(other), "and not any longer"


@pytest.mark.parametrize("end", ["an error", "a cancellation"])
async def test_renewing_ends_with_the_work(
    database: AsyncEngine, one: Leases, ids: list[int], clock: Clock, renewals: Renewals, end: str
) -> None:
    await take(one, 1)
    inside = asyncio.Event()

    async def work() -> None:
        async with one.held(members, ids[0]):
            await renewals.wait()
            inside.set()
            if end == "an error":
                raise RuntimeError("broken")
            await asyncio.Event().wait()

    before = len(asyncio.all_tasks())
    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        await task
    assert len(asyncio.all_tasks()) == before
    until = await claimed(database, ids[0])
    clock.now_s += 5
    assert await claimed(database, ids[0]) == until


async def test_what_another_one_has_taken_over_is_not_renewed(
    database: AsyncEngine, one: Leases, other: Leases, ids: list[int], clock: Clock, renewals: Renewals
) -> None:
    await take(one)
    clock.now_s += LEASE_S + 1
    assert await take(other) == ids
    theirs = await claimed(database, ids[0])
    clock.now_s += 5
    with pytest.raises(Overtaken):
        async with one.held(members, ids[0]):
            await asyncio.Event().wait()  # until it is ended: nobody wants what it makes
    assert await claimed(database, ids[0]) == theirs


async def test_a_database_that_is_away_for_a_while_is_asked_again(
    database: AsyncEngine, one: Leases, ids: list[int], clock: Clock, renewals: Renewals
) -> None:
    await take(one, 1)
    renewals.fails = 3
    clock.now_s += 5
    async with one.held(members, ids[0]):
        await renewals.wait(5)
        assert await claimed(database, ids[0]) == (one.holder, int((clock.now_s + LEASE_S) * 1000))


async def test_a_row_that_has_gone_is_nobodys(
    database: AsyncEngine, stored: Stored, one: Leases, ids: list[int], renewals: Renewals, tmp_path: Path
) -> None:
    await take(one)
    with pytest.raises(Overtaken):
        async with one.held(members, ids[0]):
            await Shelf(database, tmp_path).catalog.detach(stored.id, ["a"])
            await asyncio.Event().wait()
    await one.release(members, ids[0])
    assert await one.claim(members, true(), limit=5) == []


@pytest.mark.parametrize("how", ["deleted", "attached again"])
async def test_a_builder_leaves_what_nobody_wants_any_more(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """In the middle of a call that would last for ever, while as many are built as may be at once."""
    # Not at every millisecond: a renewal that is cancelled while SQLAlchemy closes its aiosqlite connection leaves a task behind that
    # waits for a thread that has ended, and the loop cannot be closed.
    monkeypatch.setattr(leases_module, "RENEW_S", 0.05)
    engine = Hanging()
    shelf = Shelf(database, tmp_path, backend=engine)
    stored = await shelf.store()
    files = [
        await shelf.files.add([b"words"], owner="role", key="k", filename=f"{n}.txt", purpose="assistants")
        for n in range(AT_ONCE + 1)
    ]
    new = [NewMember(one.id, "file", one.filename, {}, {"type": "auto"}) for one in files]
    await shelf.catalog.attach(stored.id, new)
    building = asyncio.create_task(shelf.builder.run())
    try:
        for _ in range(AT_ONCE):
            await engine.begun.get()
        unwanted = new[:AT_ONCE] if how == "deleted" else new[:1]
        for one in unwanted:
            if how == "deleted":
                await shelf.files.delete(one.public_id)
            else:
                await shelf.catalog.attach(stored.id, [one])
        async with asyncio.timeout(20):
            for _ in unwanted:
                await engine.left.get()
            await engine.begun.get()  # the next one has its turn
        engine.answers.set()
    finally:
        building.cancel()
        await asyncio.gather(building, return_exceptions=True)
        await shelf.aclose()
    await shelf.built(stored)
    counts, _ = (await shelf.catalog.counts([stored.id]))[stored.id]
    assert counts["completed"] == (1 if how == "deleted" else AT_ONCE + 1)
    assert await shelf.orphans() == {"documents": 0, "chunks": 0}
    await shelf.aclose()


async def test_who_claims_a_row_once_more_ends_the_own_work_of_before(
    database: AsyncEngine, one: Leases, ids: list[int], clock: Clock, renewals: Renewals
) -> None:
    """A document that is attached again is claimed by the same gateway, for what it says by now."""

    async def taken() -> int:
        mine = members.c.id == ids[0]
        assert await one.claim(members, mine, limit=1, version=members.c.version + 1) == [ids[0]]
        async with database.connect() as connection:
            return int((await connection.execute(select(members.c.version).where(mine))).scalar_one())

    async def attached_again() -> int:
        async with database.begin() as connection:
            await connection.execute(update(members).values(claimed_by="", claimed_until=0, version=before + 1))
        return await taken()

    before = await taken()
    again = asyncio.create_task(attached_again())
    with pytest.raises(Overtaken):
        async with one.held(members, ids[0], members.c.version == before):
            await asyncio.Event().wait()
    after = await again
    assert after == before + 2
    theirs = await claimed(database, ids[0])
    await one.release(members, ids[0], members.c.version == before)
    assert await claimed(database, ids[0]) == theirs, "the old work gives nothing back that is not its own"
    async with one.held(members, ids[0], members.c.version == after):
        await renewals.wait()
