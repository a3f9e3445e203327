"""Quotas of one process, in memory. Nothing here awaits between looking and taking: that is what makes a step atomic.

What was used before this process began comes from a history, once per window, before the window first counts.
"""

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from policies.errors import QuotaExceeded
from policies.quotas import Amounts, History, Limit, Measure, NoHistory, Scope, Standing, Standings
from policies.spans import Span, reaches_back_to_s
from policies.windows import Gauge, Window

T = TypeVar("T")

FORGET_EVERY = 10_000
"""Settlements between two searches for windows that nobody uses any more."""

WindowKey = tuple[Scope, Measure, Span]


class _Plan:
    """A caller's limits with their counters; limits may share one. `counters` and `slots` name each counter once."""

    def __init__(self, windows: list[tuple[Limit, Window]], gauges: list[tuple[Limit, Gauge]]) -> None:
        self.windows = windows
        self.gauges = gauges
        self.counters = {
            measure: _once(window for limit, window in windows if limit.measure is measure)
            for measure in dict.fromkeys(limit.measure for limit, _ in windows)
        }
        self.slots = _once(gauge for _, gauge in gauges)
        self.wanted = True
        """Somebody has asked for it lately."""


def _once(counters: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(counters))


@dataclass(slots=True)
class _Hold:
    """What one request has taken. It may come in several parts, each in the slices of its own moment."""

    plan: _Plan
    slots: int
    held: dict[Measure, int] = field(default_factory=dict)
    """The sums of `parts`."""
    parts: list[tuple[Measure, list[int], int]] = field(default_factory=list)
    """(measure, slice in each of the plan's windows of that measure, amount)"""

    def charge(self, measure: Measure, amount: int, now_s: float) -> None:
        windows = self.plan.counters.get(measure)
        if amount <= 0 or windows is None:
            return
        slices = [window.slice_at(now_s) for window in windows]
        self.parts.append((measure, slices, amount))
        self.held[measure] = self.held.get(measure, 0) + amount
        for window, number in zip(windows, slices, strict=True):
            window.add(number, amount)

    def refund(self, measure: Measure, amount: int) -> None:
        """From the part that was taken last: what was used, was used from the beginning on."""
        windows = self.plan.counters.get(measure, ())
        for place in range(len(self.parts) - 1, -1, -1):
            kind, slices, taken = self.parts[place]
            if kind is not measure or amount <= 0:
                continue
            back = min(amount, taken)
            amount -= back
            self.held[measure] -= back
            self.parts[place] = (kind, slices, taken - back)
            for window, number in zip(windows, slices, strict=True):
                window.add(number, -back)


class MemoryQuotas:
    """
    Args:
        clock: Unix seconds that never go back.
        history: what was used before.
    """

    def __init__(self, clock: Callable[[], float], history: History | None = None) -> None:
        self._clock = clock
        self._history = history or NoHistory()
        self._windows: dict[WindowKey, Window] = {}
        self._remembered: set[WindowKey] = set()
        """Windows that the history was asked for; one that was forgotten since was empty then."""
        self._gauges: dict[Scope, Gauge] = {}
        self._plans: dict[int, tuple[Sequence[Limit], _Plan]] = {}
        self._remembering: dict[WindowKey, asyncio.Task[None]] = {}
        self._holds: dict[str, _Hold] = {}
        self._settled = 0

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        known = self._plans.get(id(limits))
        plan = known[1] if known is not None else await self._planned(limits)
        plan.wanted = True
        if request_id in self._holds:
            return
        now_s = self._clock()
        self._refuse_if_full(plan, amounts, now_s)
        self._holds[request_id] = self._take(plan, amounts, now_s)

    async def raise_to(self, request_id: str, amounts: Amounts) -> None:
        hold = self._holds[request_id]
        held = hold.held
        more = {measure: more for measure, amount in amounts.items() if (more := amount - held.get(measure, 0)) > 0}
        if more:
            now_s = self._clock()
            self._refuse_if_full(hold.plan, more, now_s, needed=amounts)
            for measure, amount in more.items():
                hold.charge(measure, amount, now_s)

    def standing(self, request_id: str) -> Standings:
        hold = self._holds.get(request_id)
        return _standing(hold.plan, self._clock()) if hold is not None else {}

    def settle(self, request_id: str, used: Amounts) -> Standings:
        hold = self._holds.pop(request_id, None)
        if hold is None:
            return {}
        now_s = self._clock()
        for measure, amount in used.items():
            held = hold.held.get(measure, 0)
            if amount > held:
                hold.charge(measure, amount - held, now_s)
            elif amount < held:
                hold.refund(measure, held - amount)
        for gauge in hold.plan.slots:
            gauge.value -= hold.slots
        self._settled += 1
        if self._settled % FORGET_EVERY == 0:
            self._forget_unused(now_s)
        return _standing(hold.plan, now_s)

    def charge(self, request_id: str, limits: Sequence[Limit], used: Amounts) -> None:
        """In the windows that know their history; the others get it from there, when they are first asked for."""
        now_s = self._clock()
        keys = {(limit.scope, limit.measure, limit.span) for limit in limits if limit.span is not None}
        for key in keys & self._remembered:
            window = self._window(key)
            window.add(window.slice_at(now_s), used.get(key[1], 0))

    async def drain(self) -> None:
        """Settlements are in force at once."""

    async def aclose(self) -> None:
        """There is nothing to close."""

    def _forget_unused(self, now_s: float) -> None:
        """Plans that nobody has asked for since the last time, and windows that are empty and that no plan names: one that named a
        forgotten window would count beside a new one.
        """
        self._plans = {name: entry for name, entry in self._plans.items() if entry[1].wanted}
        plans = [*(plan for _, plan in self._plans.values()), *(hold.plan for hold in self._holds.values())]
        named = {window for plan in plans for _, window in plan.windows}
        self._windows = {key: window for key, window in self._windows.items() if window in named or window.used(now_s)}
        for _, plan in self._plans.values():
            plan.wanted = False

    @property
    def open_holds(self) -> int:
        return len(self._holds)

    def _refuse_if_full(self, plan: _Plan, amounts: Amounts, now_s: float, *, needed: Amounts | None = None) -> None:
        worst: tuple[float, Limit] | None = None
        for limit, gauge in plan.gauges:
            amount = amounts.get(Measure.CONCURRENT, 0)
            if amount and gauge.value + amount > limit.amount and (worst is None or worst[0] < 1.0):
                worst = (1.0, limit)
        for limit, window in plan.windows:
            amount = amounts.get(limit.measure, 0)
            over = window.used(now_s) + amount - limit.amount
            if amount == 0 or over <= 0:
                continue
            wait_s = math.inf if (needed or amounts)[limit.measure] > limit.amount else window.free_in_s(now_s, over)
            if worst is None or wait_s > worst[0]:
                worst = (wait_s, limit)
        if worst is not None:
            wait_s, limit = worst
            raise QuotaExceeded(
                limit,
                needed=(needed or amounts)[limit.measure],
                retry_after_s=None if math.isinf(wait_s) else wait_s,
                standings=_standing(plan, now_s),
            )

    def _take(self, plan: _Plan, amounts: Amounts, now_s: float) -> _Hold:
        """Limits that share a counter take from it once."""
        slots = amounts.get(Measure.CONCURRENT, 0)
        for gauge in plan.slots:
            gauge.value += slots
        hold = _Hold(plan, slots)
        for measure in plan.counters:
            hold.charge(measure, amounts.get(measure, 0), now_s)
        return hold

    async def _planned(self, limits: Sequence[Limit]) -> _Plan:
        """Made once for a caller: by the identity of its limits, which is kept from being another's as long as it is here."""
        for key in {(limit.scope, limit.measure, limit.span): limit for limit in limits if limit.span is not None}:
            if key not in self._remembered:
                await self._remember_once(key)
            else:
                await self._make_up(key)
        known = self._plans.get(id(limits))
        if known is not None:
            return known[1]
        plan = _Plan(
            [(limit, self._window((limit.scope, limit.measure, limit.span))) for limit in limits if limit.span],
            [(limit, self._gauges.setdefault(limit.scope, Gauge())) for limit in limits if limit.span is None],
        )
        self._plans[id(limits)] = (limits, plan)
        return plan

    async def _remember_once(self, key: WindowKey) -> None:
        """Many may wait for the same window; whoever leaves does not take its history with him."""
        task = self._remembering.get(key)
        if task is None:
            task = self._remembering[key] = asyncio.create_task(self._remember(key), name="what was used before")
            task.add_done_callback(lambda done: self._remembered_or_not(key, done))
        await asyncio.shield(task)

    def _remembered_or_not(self, key: WindowKey, task: "asyncio.Task[None]") -> None:
        self._remembering.pop(key, None)
        if not task.cancelled():
            task.exception()  # told to those who wait; there may be none

    def _window(self, key: WindowKey) -> Window:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(key[2])
        return window

    async def _make_up(self, key: WindowKey) -> None:
        """New limits that name an old window: while no limit named it, nobody counted in it."""
        scope, measure, span = key
        since_s = reaches_back_to_s(span, self._clock())
        used = await self._history.used(scope, measure, since_s=since_s, whole=True)
        now_s, window = self._clock(), self._window(key)
        window.add(window.slice_at(now_s), max(0, sum(amount for _, amount in used) - window.used(now_s)))

    async def _remember(self, key: WindowKey) -> None:
        scope, measure, span = key
        used = await self._history.used(scope, measure, since_s=reaches_back_to_s(span, self._clock()))
        now_s, window = self._clock(), self._window(key)
        for at_s, amount in sorted(used):
            number = span.slice_at(min(at_s, now_s))
            if number >= window.slice_at(now_s) - span.lasting:
                window.add(number, amount)
        self._remembered.add(key)


def _standing(plan: _Plan, now_s: float) -> Standings:
    standings: Standings = {}
    for limit, window in plan.windows:
        remaining = max(0, limit.amount - window.used(now_s))
        known = standings.get(limit.measure)
        if known is None or remaining < known.remaining:
            standings[limit.measure] = Standing(limit.amount, remaining, window.reset_in_s(now_s))
    return standings
