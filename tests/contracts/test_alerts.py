"""Crossings are noted once, whoever sees them first, on every database."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from policies.alerts import KEPT_S, Alerts, Crossing, crossings
from policies.quotas import Limit, Measure, Scope
from policies.spans import Calendar, Rolling, Span

pytestmark = pytest.mark.anyio

NOW_S = 1_760_000_000.0


def reached(amount: int, thresholds: list[float], now_s: float = NOW_S, span: Span | None = None) -> list[Crossing]:
    limit = Limit(Scope("key_1", "gpt-*"), Measure.COST, 2_000_000_000, span or Calendar("month"))
    return crossings(limit, amount, thresholds, now_s)


def test_a_threshold_is_crossed_when_it_is_reached() -> None:
    assert reached(1_599_999_999, [0.8, 1.0]) == []
    assert [one.event["threshold"] for one in reached(1_600_000_000, [0.8, 1.0])] == [0.8]
    assert [one.event["threshold"] for one in reached(9_000_000_000, [0.8, 1.0])] == [0.8, 1.0]
    (one,) = reached(2_000_000_000, [1.0])
    assert one.event == {
        "holder": "key_1", "model": "gpt-*", "measure": "cost_usd", "per": "month", "limit": 2.0, "used": 2.0,
        "threshold": 1.0,
    }  # fmt: skip


def test_the_next_window_of_the_calendar_crosses_anew() -> None:
    days = {reached(2_000_000_000, [1.0], NOW_S + part * 21_600, Calendar("day"))[0].id for part in range(8)}
    assert len(days) == 3


async def test_a_rolling_window_that_stays_full_crosses_again_after_its_length(database: AsyncEngine) -> None:
    alerts, told = Alerts(database), []
    for second in range(0, 8000, 100):
        (crossing,) = reached(2_000_000_000, [1.0], NOW_S + second, Rolling(3600.0))
        if await alerts.note(crossing, NOW_S + second):
            told.append(second)
    assert told == [0, 3600, 7200]


async def test_a_crossing_is_noted_once_and_goes_when_it_was_sent(database: AsyncEngine) -> None:
    alerts = Alerts(database)
    first, second = reached(2_000_000_000, [0.8, 1.0])
    assert await alerts.note(first, NOW_S)
    assert not await alerts.note(first, NOW_S + 5)
    assert await alerts.note(second, NOW_S + 1)
    assert [row.id for row in await alerts.unsent(since_s=NOW_S)] == [first.id, second.id]
    assert [row.id for row in await alerts.unsent(since_s=NOW_S + 1)] == [second.id]
    await alerts.sent(first.id, NOW_S + 10)
    (row,) = await alerts.unsent(since_s=0)
    assert (row.id, row.event["threshold"]) == (second.id, 1.0)
    await alerts.sent(second.id, NOW_S + KEPT_S + 60)
    assert await alerts.note(first, NOW_S)
