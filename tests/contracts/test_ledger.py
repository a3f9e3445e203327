"""The ledger, whatever database keeps it: rows once, sums that agree with them, and what limits are rebuilt from."""

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.journal import Content, End
from policies.ledger import Ledger, contents, requests, usage
from policies.ledger_sql import HOUR_S, MINUTE_S
from policies.quotas import Measure, Scope
from tests.gateway.test_journal import end

pytestmark = pytest.mark.anyio

NOW_S = 1_760_000_000.0
NOW_US = int(NOW_S) * 1_000_000


@pytest.fixture
def ledger(database: AsyncEngine) -> Ledger:
    return Ledger(database)


def lines(*ends: End) -> list[bytes]:
    return [msgspec.json.encode(one) for one in ends]


async def rows_of(database: AsyncEngine, table: object) -> list[dict[str, object]]:
    async with database.connect() as connection:
        return [dict(row) for row in (await connection.execute(select(table))).mappings()]  # type: ignore[call-overload]


async def test_a_row_says_what_the_line_said(ledger: Ledger, database: AsyncEngine) -> None:
    strange = {"model": "größe/日本 'x\" \\ ;--", "user": "ann\n", "first_byte_ms": None, "cost": 10**15, "at": NOW_US}
    await ledger.add(lines(end(1, **strange)), [msgspec.json.encode(Content("req_1", '{"a": "ü"}', "data: …\n\n"))])
    (row,) = await rows_of(database, requests)
    wanted = {field: getattr(end(1, **strange), field) for field in End.__struct_fields__}
    assert {**row, "tags": tuple(row["tags"])} == wanted
    assert await rows_of(database, contents) == [{"id": "req_1", "request": '{"a": "ü"}', "answer": "data: …\n\n"}]


async def test_the_same_lines_count_once_however_often_they_come(ledger: Ledger, database: AsyncEngine) -> None:
    first = lines(end(1, at=NOW_US), end(2, at=NOW_US))
    assert await ledger.add(first) == 2
    assert await ledger.add([*first, *lines(end(3, at=NOW_US))]) == 1
    assert await ledger.add(first) == 0
    assert len(await rows_of(database, requests)) == 3
    for row in await rows_of(database, usage):
        assert (row["requests"], row["prompt_tokens"], row["cost"]) == (3, 30, 90)


async def test_sums_are_by_minute_and_hour_and_by_who_and_what(ledger: Ledger, database: AsyncEngine) -> None:
    await ledger.add(
        lines(
            end(1, at=NOW_US),
            end(2, at=NOW_US + 61_000_000, status=502, outcome="failed", completion_tokens=0),
            end(3, at=NOW_US, status=429, outcome="failed", admitted=0),
            end(4, at=NOW_US, status=499, outcome="client_left"),
            end(5, at=NOW_US, model="no such", entry="", admitted=0, backend=""),
            end(6, at=NOW_US, key="key_2"),
        )
    )
    rows = await rows_of(database, usage)
    hours = {(row["key"], row["model"]): row for row in rows if row["grain_s"] == HOUR_S}
    assert {pair: (row["requests"], row["refused"], row["failed"]) for pair, row in hours.items()} == {
        ("key_1", "guide"): (3, 1, 1),
        ("key_1", ""): (0, 1, 0),
        ("key_2", "guide"): (1, 0, 0),
    }
    assert hours["key_1", "guide"]["start"] == int(NOW_S) // HOUR_S * HOUR_S
    minutes = [row for row in rows if row["grain_s"] == MINUTE_S and row["key"] == "key_1" and row["model"] == "guide"]
    assert sorted((row["start"], row["requests"]) for row in minutes) == [
        (int(NOW_S) // 60 * 60, 2),
        ((int(NOW_S) + 61) // 60 * 60, 1),
    ]


async def test_what_a_key_or_a_role_has_used_is_known_by_measure_and_model(ledger: Ledger) -> None:
    await ledger.add(
        lines(
            end(1, at=NOW_US),
            end(2, at=NOW_US, model="gpt-4o", entry="gpt-4o"),
            end(3, at=NOW_US, key="key_2"),
            end(4, at=NOW_US, key="key_3", role="other"),
            end(5, at=NOW_US - 3 * 3_600_000_000),
        )
    )

    async def used(scope: Scope, measure: Measure, back_s: float = 3600.0) -> int:
        return sum(amount for _, amount in await ledger.used(scope, measure, since_s=NOW_S - back_s, now_s=NOW_S))

    key = Scope("key_1")
    assert [await used(key, measure) for measure in (Measure.REQUESTS, Measure.TOKENS, Measure.COST, Measure.COMPUTE)] == [
        2, 30, 60, 80,
    ]  # fmt: skip
    assert await used(key, Measure.REQUESTS, 4 * 3600.0) == 3
    assert await used(key, Measure.REQUESTS, 20 * 86_400.0) == 3
    assert await used(Scope("key_1", "gpt-*"), Measure.REQUESTS) == 1
    assert await used(Scope("role:team"), Measure.REQUESTS) == 3
    assert await used(Scope("nobody"), Measure.REQUESTS) == 0


@pytest.mark.parametrize("back_s", [10.0, 3600.0, 86_400.0, 30 * 86_400.0])
async def test_nothing_that_lies_in_a_window_is_forgotten_and_it_counts_at_its_latest(
    ledger: Ledger, back_s: float
) -> None:
    """A sum whose beginning lies before the window may hold something that does not."""
    at_s = NOW_S - back_s + 1
    await ledger.add(lines(end(1, at=int(at_s * 1e6))))
    ((latest_s, amount),) = await ledger.used(Scope("key_1"), Measure.REQUESTS, since_s=NOW_S - back_s, now_s=NOW_S)
    assert amount == 1
    assert at_s <= latest_s <= at_s + (HOUR_S if back_s > 86_400 else MINUTE_S)


async def test_old_rows_go_with_what_belongs_to_them_and_sums_stay_longer(
    ledger: Ledger, database: AsyncEngine
) -> None:
    day_us = 86_400_000_000
    await ledger.add(
        lines(end(1, at=NOW_US - 40 * day_us), end(2, at=NOW_US - 500 * day_us), end(3, at=NOW_US)),
        [msgspec.json.encode(Content(f"req_{number}", "a", "b")) for number in (1, 3)],
    )
    gone = await ledger.prune(rows_before_s=NOW_S - 30 * 86_400, hours_before_s=NOW_S - 400 * 86_400, now_s=NOW_S)
    assert gone == 2
    assert [row["id"] for row in await rows_of(database, requests)] == ["req_3"]
    assert [row["id"] for row in await rows_of(database, contents)] == ["req_3"]
    starts = sorted((row["grain_s"], row["start"]) for row in await rows_of(database, usage))
    assert [grain for grain, _ in starts] == [MINUTE_S, HOUR_S, HOUR_S]
