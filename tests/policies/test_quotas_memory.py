"""What only the store in memory promises; the rest is in `contracts/test_quota_store.py`."""

import pytest

from policies.quotas import Limit, Measure, NoHistory, Scope
from policies.quotas_memory import FORGET_EVERY, MemoryQuotas
from policies.spans import SLICES, Rolling
from policies.windows import Window

pytestmark = pytest.mark.anyio


async def test_open_holds_go_when_they_are_settled() -> None:
    quotas = MemoryQuotas(lambda: 0.0)
    limits = [Limit(Scope("key"), Measure.TOKENS, 100, Rolling(60.0))]
    for name in ("a", "b", "a"):
        await quotas.reserve(name, limits, {Measure.TOKENS: 10})
    assert quotas.open_holds == 2
    quotas.settle("a", {Measure.TOKENS: 10})
    quotas.settle("a", {Measure.TOKENS: 10})
    assert quotas.open_holds == 1


async def test_a_window_keeps_no_more_slices_than_it_needs() -> None:
    window = Window(Rolling(60.0))
    for second in range(1000):
        window.used(float(second))
        window.add(window.slice_at(float(second)), 1)
    assert window.used(1000.0) == SLICES
    assert len(window._slices) <= SLICES + 1


async def test_a_partly_expired_slice_counts_in_full() -> None:
    window = Window(Rolling(60.0))
    window.add(window.slice_at(0.9), 5)
    assert [window.used(now_s) for now_s in (60.0, 60.95, 61.0)] == [5, 5, 0]


async def test_what_nobody_uses_is_forgotten_and_what_is_used_is_not_learned_anew() -> None:
    asked: list[str] = []

    class Asked(NoHistory):
        async def used(
            self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
        ) -> list[tuple[float, int]]:
            asked.append(scope.holder)
            return []

    now_s = 1000.0
    quotas = MemoryQuotas(lambda: now_s, Asked())
    busy = [Limit(Scope("busy"), Measure.TOKENS, 10**9, Rolling(10.0))]
    idle = [Limit(Scope("idle"), Measure.TOKENS, 10**9, Rolling(10.0))]
    await quotas.reserve("idle", idle, {Measure.TOKENS: 1})
    quotas.settle("idle", {Measure.TOKENS: 1})
    for number in range(3 * FORGET_EVERY):
        now_s += 0.01
        await quotas.reserve(str(number), busy, {Measure.TOKENS: 1})
        quotas.settle(str(number), {Measure.TOKENS: 1})
    assert asked == ["idle", "busy"]
    assert [scope.holder for scope, _, _ in quotas._windows] == ["busy"]
    await quotas.reserve("again", idle, {Measure.TOKENS: 1})
    assert asked == ["idle", "busy", "idle"]
