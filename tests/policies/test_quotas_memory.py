"""What only the store in memory promises; the rest is in `contracts/test_quota_store.py`."""

import pytest

from policies.quotas import Limit, Measure, Scope
from policies.quotas_memory import MemoryQuotas
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
