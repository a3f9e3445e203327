"""From the journal's files into the ledger: once each, whatever dies or does not answer in between."""

import asyncio
import shutil
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.journal import Content, Journal, encode
from gateway.ledger_writer import HISTORY_TIMEOUT_S, UNREADABLE, LedgerWriter
from gateway.settings_schema import LedgerSettings
from policies.errors import QuotaStoreDown
from policies.ledger import Ledger, requests
from policies.quotas import Limit, Measure, Scope
from policies.quotas_memory import MemoryQuotas
from policies.spans import Rolling
from tests.gateway.test_journal import begin, end

pytestmark = pytest.mark.anyio

NOW_S = 1_760_000_000.0
NOW_US = int(NOW_S) * 1_000_000


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    journal = Journal(tmp_path / "journal")
    journal.open()
    yield journal
    journal.close()


@pytest.fixture
async def writer(journal: Journal, database: AsyncEngine) -> AsyncIterator[LedgerWriter]:
    writer = LedgerWriter(journal, Ledger(database), LedgerSettings(), clock=lambda: NOW_S)
    yield writer
    writer.close()


async def rows(database: AsyncEngine) -> dict[str, str]:
    """Request -> outcome."""
    async with database.connect() as connection:
        return {row.id: row.outcome for row in await connection.execute(select(requests.c.id, requests.c.outcome))}


def files(journal: Journal) -> list[str]:
    return sorted(path.name for path in journal.folder.glob("*.log"))


async def test_what_has_ended_is_in_the_ledger_and_what_has_not_is_not(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    journal.begin(begin(1))
    journal.end(end(1), Content("req_1", "asked", "answered"))
    journal.begin(begin(2))
    await writer.catch_up()
    assert await rows(database) == {"req_1": "complete"}
    assert writer.backlog_bytes == 0
    journal.end(end(2))
    assert writer.backlog_bytes > 0
    await writer.catch_up()
    assert set(await rows(database)) == {"req_1", "req_2"}


async def test_a_line_that_is_only_half_there_is_read_when_it_is_whole(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    line = encode(end(1))
    path = journal.files[-1]
    with path.open("ab", buffering=0) as file:
        file.write(line[:50])
        await writer.catch_up()
        assert await rows(database) == {}
        file.write(line[50:])
        await writer.catch_up()
    assert set(await rows(database)) == {"req_1"}


async def test_a_file_goes_when_it_is_whole_and_all_its_requests_have_ended(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    journal.begin(begin(1))
    journal.close()
    journal.begin(begin(2))
    first, second = journal.files
    await writer.catch_up()
    assert files(journal) == sorted([first.name, second.name])
    journal.end(end(1))  # in the second file
    await writer.catch_up()
    assert files(journal) == [second.name]
    journal.close()
    await writer.catch_up()
    assert files(journal) == [second.name]
    journal.end(end(2))
    journal.close()
    await writer.catch_up()
    assert files(journal) == []


async def test_what_a_dead_process_left_is_settled_and_its_files_go(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    dead = Journal(journal.folder)
    dead.begin(begin(1))
    dead.begin(begin(2))
    dead.close()
    dead.begin(begin(3, at=NOW_US))
    dead.end(end(1))
    dead.release()
    with dead.files[0].open("ab") as file:
        file.write(encode(end(2))[:-9])  # torn: the client never got its last byte
    await writer.adopt()
    assert await rows(database) == {"req_1": "complete", "req_2": "crashed", "req_3": "crashed"}
    assert files(journal) == [journal.files[0].name]
    used = await Ledger(database).used(Scope("key_1"), Measure.TOKENS, since_s=NOW_S - 60, now_s=NOW_S)
    assert [amount for _, amount in used] == [100]
    async with database.connect() as connection:
        row = (await connection.execute(select(requests).where(requests.c.id == "req_3"))).mappings().one()
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"], row["cost"], row["admitted"]) == (
        0,
        20,
        80,
        7,
        1,
    )


async def test_a_living_process_keeps_its_files(journal: Journal, writer: LedgerWriter, database: AsyncEngine) -> None:
    living = Journal(journal.folder)
    living.begin(begin(1))
    living.close()  # full: the next line is in another file
    living.begin(begin(2))
    await writer.adopt()
    assert await rows(database) == {}
    assert [path.exists() for path in living.files] == [True, True]
    living.release()
    await writer.adopt()
    assert await rows(database) == {"req_1": "crashed", "req_2": "crashed"}


async def test_a_file_that_was_read_before_a_crash_counts_once(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    dead = Journal(journal.folder)
    dead.begin(begin(1))
    dead.end(end(1))
    dead.release()
    kept = dead.files[0].read_bytes()
    await writer.adopt()
    (journal.folder / "again.log").write_bytes(kept)
    await writer.adopt()
    assert await rows(database) == {"req_1": "complete"}
    used = await Ledger(database).used(Scope("key_1"), Measure.REQUESTS, since_s=0.0, now_s=NOW_S)
    assert [amount for _, amount in used] == [1]


async def test_while_the_database_fails_the_files_wait_and_nothing_is_lost(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    async with database.begin() as connection:
        await connection.execute(text("ALTER TABLE requests RENAME TO hidden"))
    for number in range(1, 4):
        journal.begin(begin(number))
        journal.end(end(number, at=NOW_US))
        journal.close()
        await writer.attempt(adopt=True)
    assert writer.failing
    assert len(files(journal)) == 3
    with pytest.raises(QuotaStoreDown):
        await writer.used(Scope("key_1"), Measure.REQUESTS, since_s=0.0)
    async with database.begin() as connection:
        await connection.execute(text("ALTER TABLE hidden RENAME TO requests"))
    await writer.attempt(adopt=True)
    assert not writer.failing
    assert set(await rows(database)) == {"req_1", "req_2", "req_3"}
    assert files(journal) == []


async def test_a_line_that_the_database_refuses_does_not_keep_the_others_out(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    for number in range(1, 8):
        journal.end(end(number, **({"outcome": None} if number == 5 else {})))
    await writer.catch_up()
    assert set(await rows(database)) == {f"req_{number}" for number in (1, 2, 3, 4, 6, 7)}
    assert b'"req_5"' in (journal.folder / UNREADABLE).read_bytes()


async def test_a_history_is_asked_for_with_the_journal_read_first(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    journal.end(end(1, at=NOW_US))
    used = await writer.used(Scope("key_1"), Measure.REQUESTS, since_s=NOW_S - 60)
    assert [amount for _, amount in used] == [1]


async def test_a_megabyte_in_one_line_is_read(journal: Journal, writer: LedgerWriter, database: AsyncEngine) -> None:
    journal.end(end(1), Content("req_1", "x" * 700_000, "y" * 400_000))
    journal.end(end(2))
    await writer.catch_up()
    assert set(await rows(database)) == {"req_1", "req_2"}


async def test_old_rows_go_by_the_settings(journal: Journal, database: AsyncEngine) -> None:
    writer = LedgerWriter(journal, Ledger(database), LedgerSettings(retention_days=1), clock=lambda: NOW_S)
    journal.end(end(1, at=NOW_US - 2 * 86_400_000_000))
    journal.end(end(2, at=NOW_US))
    await writer.attempt(adopt=False)
    assert set(await rows(database)) == {"req_2"}
    writer.close()


async def test_what_cannot_be_read_is_no_reason_to_stop(journal: Journal, writer: LedgerWriter) -> None:
    (journal.folder / "folder.log").mkdir()
    await writer.attempt(adopt=True)
    assert not writer.failing


async def test_a_history_is_told_although_the_journal_never_stops_growing(
    journal: Journal, writer: LedgerWriter
) -> None:
    going_on = True

    async def grow() -> None:
        number = 0
        while going_on:
            for _ in range(50):
                number += 1
                journal.end(end(number, at=NOW_US))
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(grow)
        for _ in range(3):
            with anyio.fail_after(5):
                assert await writer.used(Scope("key_1"), Measure.REQUESTS, since_s=NOW_S - 60) is not None
        going_on = False


async def test_files_that_are_removed_under_the_gateway_cost_no_more_than_they_held(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    journal.end(end(1, at=NOW_US))
    await writer.catch_up()
    journal.end(end(2, at=NOW_US))
    shutil.rmtree(journal.folder)
    journal.end(end(3, at=NOW_US))  # into a file that nobody sees any more
    for _ in range(2):
        await writer.attempt(adopt=True)
    assert set(await rows(database)) == {"req_1", "req_2", "req_3"}
    journal.end(end(4, at=NOW_US))
    await writer.catch_up()
    assert set(await rows(database)) == {"req_1", "req_2", "req_3", "req_4"}
    assert not writer.failing
    assert len(files(journal)) == 1


async def test_lines_of_another_version_are_set_aside_and_the_others_go_on(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    old = Journal(journal.folder)
    old.begin(begin(1, at=NOW_US))
    for line in (
        b'{"type":"begin","id":"req_2","key":"k","at":1.5}',
        b'{"type":"end","id":"req_3","key":"k","at":2.5}',
    ):
        old._write(b"%08x %b\n" % (zlib.crc32(line), line))
    old.end(end(4, at=NOW_US))
    old.release()
    await writer.attempt(adopt=True)
    assert not writer.failing
    assert await rows(database) == {"req_1": "crashed", "req_4": "complete"}
    assert b"req_3" in (journal.folder / UNREADABLE).read_bytes()


async def test_a_history_waits_until_what_dead_processes_left_is_in_it(
    journal: Journal, writer: LedgerWriter, database: AsyncEngine
) -> None:
    """The first attempt, at the start, may have failed."""
    dead = Journal(journal.folder)
    dead.end(end(1, at=NOW_US))
    dead.release()
    used = await writer.used(Scope("key_1"), Measure.REQUESTS, since_s=NOW_S - 60)
    assert [amount for _, amount in used] == [1]


async def test_two_who_take_the_same_lines_over_at_the_same_time_count_them_once(database: AsyncEngine) -> None:
    lines = [msgspec.json.encode(end(number, at=NOW_US)) for number in range(300)]
    first, second = Ledger(database), Ledger(database)
    added = await asyncio.gather(first.add(lines), second.add(lines[100:]), first.add(lines[:200]))
    assert sum(added) == 300
    used = await first.used(Scope("key_1"), Measure.REQUESTS, since_s=NOW_S - 60, now_s=NOW_S)
    assert sum(amount for _, amount in used) == 300


async def test_a_database_that_hangs_is_waited_for_once_and_not_by_everybody_in_turn(
    journal: Journal, database: AsyncEngine
) -> None:
    class Hanging(Ledger):
        async def used(self, *_: object, **__: object) -> list[tuple[float, int]]:
            await anyio.sleep(60)
            return []

    writer = LedgerWriter(journal, Hanging(database), LedgerSettings(), clock=time.monotonic)
    quotas = MemoryQuotas(time.monotonic, writer)
    limits = [[Limit(Scope(f"key_{number}"), Measure.REQUESTS, 5, Rolling(3600.0))] for number in range(6)]
    began = time.monotonic()
    asked = (quotas.reserve(str(number), one, {Measure.REQUESTS: 1}) for number, one in enumerate(limits))
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {QuotaStoreDown}
    with pytest.raises(QuotaStoreDown):
        await quotas.reserve("next", limits[0], {Measure.REQUESTS: 1})
    assert time.monotonic() - began < HISTORY_TIMEOUT_S + 1
    writer.close()
