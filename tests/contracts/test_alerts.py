"""Crossings are noted once, whoever sees them first, on every database."""

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from policies.alerts import KEPT_S, Alerts, crossings
from policies.quotas import Limit, Measure, Scope, Used
from policies.spans import Calendar, Rolling, Span

pytestmark = pytest.mark.anyio

NOW_S = 1_760_000_000.0


def used(amount: int, span: Span | None = None) -> Used:
    return Used(Limit(Scope("key_1", "gpt-*"), Measure.COST, 2_000_000_000, span or Calendar("month")), amount)


def test_a_threshold_is_crossed_when_it_is_reached() -> None:
    assert crossings(used(1_599_999_999), [0.8, 1.0], NOW_S) == []
    assert [one.event["threshold"] for one in crossings(used(1_600_000_000), [0.8, 1.0], NOW_S)] == [0.8]
    assert [one.event["threshold"] for one in crossings(used(9_000_000_000), [0.8, 1.0], NOW_S)] == [0.8, 1.0]
    (one,) = crossings(used(2_000_000_000), [1.0], NOW_S)
    assert one.event == {
        "holder": "key_1", "model": "gpt-*", "measure": "cost_usd", "per": "month", "limit": 2.0, "used": 2.0,
        "threshold": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("span", "length_s"), [(Calendar("day"), 86_400), (Rolling(3600.0), 3600)], ids=str)
def test_the_next_window_crosses_anew(span: Span, length_s: int) -> None:
    names = {crossings(used(2_000_000_000, span), [1.0], NOW_S + part * length_s / 4)[0].id for part in range(8)}
    assert len(names) == 3


async def test_a_crossing_is_noted_once_and_goes_when_it_was_sent(database: AsyncEngine) -> None:
    alerts = Alerts(database)
    first, second = crossings(used(2_000_000_000), [0.8, 1.0], NOW_S)
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
