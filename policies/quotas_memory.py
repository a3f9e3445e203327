"""Quotas of one process, in memory. Nothing here awaits between looking and taking: that is what makes a step atomic."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from policies.errors import QuotaExceeded
from policies.quotas import Amounts, Limit, Measure, Standing

T = TypeVar("T")

SLICES = 60

FORGET_EVERY = 10_000
"""Settlements between two searches for windows that nobody uses any more."""


class Window:
    """A rolling window in sixty slices. A partly expired slice counts in full, so no window ever holds more than allowed."""

    def __init__(self, per_s: float) -> None:
        self._width_s = per_s / SLICES
        self._swept: int | None = None  # the slice at which `used` last looked for expired ones
        self._slices: dict[int, int] = {}  # number of the slice -> used in it; in order, because time only goes forward
        self._total = 0

    def slice_at(self, now_s: float) -> int:
        return math.floor(now_s / self._width_s)

    def used(self, now_s: float) -> int:
        now = math.floor(now_s / self._width_s)
        if now == self._swept:
            return self._total
        self._swept, oldest = now, now - SLICES
        while self._slices and (first := next(iter(self._slices))) < oldest:
            self._total -= self._slices.pop(first)
        return self._total

    def add(self, slice_number: int, amount: int) -> None:
        """Only to the present slice, or less of one that was charged before; one that has expired is past correcting."""
        if amount > 0 or slice_number in self._slices:
            before = self._slices.get(slice_number, 0)
            after = self._slices[slice_number] = max(0, before + amount)
            self._total += after - before

    def free_in_s(self, now_s: float, amount: int) -> float:
        """Seconds until at least `amount` of what is used now has expired."""
        freed = 0
        for number, used in self._slices.items():
            freed += used
            if freed >= amount:
                return self._expires_s(number) - now_s
        return 0.0

    def reset_in_s(self, now_s: float) -> float:
        for number in reversed(self._slices):
            if self._slices[number]:
                return max(0.0, self._expires_s(number) - now_s)
        return 0.0

    def _expires_s(self, number: int) -> float:
        return (number + SLICES + 1) * self._width_s


class Gauge:
    """How many at this moment."""

    def __init__(self) -> None:
        self.value = 0


class _Plan:
    """A caller's limits with their counters; limits may share one. `requests`, `tokens` and `slots` name each counter once."""

    def __init__(self, windows: list[tuple[Limit, Window]], gauges: list[tuple[Limit, Gauge]]) -> None:
        self.windows = windows
        self.gauges = gauges
        self.requests = _once(window for limit, window in windows if limit.measure is Measure.REQUESTS)
        self.tokens = _once(window for limit, window in windows if limit.measure is Measure.TOKENS)
        self.slots = _once(gauge for _, gauge in gauges)


def _once(counters: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(counters))


@dataclass(slots=True)
class _Hold:
    """What one request has taken. Tokens may come in several parts, each in the slices of its own moment."""

    plan: _Plan
    slots: int
    tokens: int = 0
    """The sum of `parts`."""
    parts: list[tuple[list[int], int]] = field(default_factory=list)
    """(slice in each of the plan's windows of tokens, tokens)"""

    def charge(self, tokens: int, now_s: float) -> None:
        if tokens <= 0:
            return
        slices = [window.slice_at(now_s) for window in self.plan.tokens]
        self.parts.append((slices, tokens))
        self.tokens += tokens
        for window, number in zip(self.plan.tokens, slices, strict=True):
            window.add(number, tokens)

    def refund(self, tokens: int) -> None:
        """From the part that was taken last: what was used, was used from the beginning on."""
        while tokens > 0 and self.parts:
            slices, taken = self.parts.pop()
            back = min(tokens, taken)
            tokens -= back
            self.tokens -= back
            for window, number in zip(self.plan.tokens, slices, strict=True):
                window.add(number, -back)
            if back < taken:
                self.parts.append((slices, taken - back))


class MemoryQuotas:
    """
    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, Measure, float], Window] = {}
        self._gauges: dict[str, Gauge] = {}
        self._plans: dict[int, tuple[Sequence[Limit], _Plan]] = {}
        self._holds: dict[str, _Hold] = {}
        self._settled = 0

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        if request_id in self._holds:
            return
        now_s = self._clock()
        plan = self._planned(limits)
        self._refuse_if_full(plan, amounts, now_s)
        self._holds[request_id] = self._take(plan, amounts, now_s)

    async def raise_to(self, request_id: str, tokens: int) -> None:
        hold = self._holds[request_id]
        if (more := tokens - hold.tokens) > 0:
            now_s = self._clock()
            self._refuse_if_full(hold.plan, {Measure.TOKENS: more}, now_s, needed=tokens)
            hold.charge(more, now_s)

    def standing(self, request_id: str) -> dict[Measure, Standing]:
        hold = self._holds.get(request_id)
        return _standing(hold.plan, self._clock()) if hold is not None else {}

    def settle(self, request_id: str, tokens: int) -> dict[Measure, Standing]:
        hold = self._holds.pop(request_id, None)
        if hold is None:
            return {}
        now_s = self._clock()
        if tokens > hold.tokens:
            hold.charge(tokens - hold.tokens, now_s)
        else:
            hold.refund(hold.tokens - tokens)
        for gauge in hold.plan.slots:
            gauge.value -= hold.slots
        self._settled += 1
        if self._settled % FORGET_EVERY == 0:
            self._forget_unused(now_s)
        return _standing(hold.plan, now_s)

    def _forget_unused(self, now_s: float) -> None:
        """Plans go with the windows they name: one that named a forgotten window would count beside a new one."""
        held = {window for hold in self._holds.values() for _, window in hold.plan.windows}
        self._windows = {key: window for key, window in self._windows.items() if window in held or window.used(now_s)}
        self._plans.clear()

    @property
    def open_holds(self) -> int:
        return len(self._holds)

    def _refuse_if_full(self, plan: _Plan, amounts: Amounts, now_s: float, *, needed: int | None = None) -> None:
        worst: tuple[float, Limit, int] | None = None
        for limit, gauge in plan.gauges:
            amount = amounts.get(Measure.CONCURRENT, 0)
            if amount and gauge.value + amount > limit.amount and (worst is None or worst[0] < 1.0):
                worst = (1.0, limit, amount)
        for limit, window in plan.windows:
            amount = amounts.get(limit.measure, 0)
            over = window.used(now_s) + amount - limit.amount
            if amount == 0 or over <= 0:
                continue
            wait_s = math.inf if (needed or amount) > limit.amount else window.free_in_s(now_s, over)
            if worst is None or wait_s > worst[0]:
                worst = (wait_s, limit, needed or amount)
        if worst is not None:
            wait_s, limit, amount = worst
            raise QuotaExceeded(
                limit,
                needed=amount,
                retry_after_s=None if math.isinf(wait_s) else wait_s,
                standings=_standing(plan, now_s),
            )

    def _take(self, plan: _Plan, amounts: Amounts, now_s: float) -> _Hold:
        """Limits that share a counter take from it once."""
        slots = amounts.get(Measure.CONCURRENT, 0)
        for gauge in plan.slots:
            gauge.value += slots
        if requests := amounts.get(Measure.REQUESTS, 0):
            for window in plan.requests:
                window.add(window.slice_at(now_s), requests)
        hold = _Hold(plan, slots)
        hold.charge(amounts.get(Measure.TOKENS, 0), now_s)
        return hold

    def _planned(self, limits: Sequence[Limit]) -> _Plan:
        """Made once for a caller: by the identity of its limits, which is kept from being another's as long as it is here."""
        known = self._plans.get(id(limits))
        if known is not None:
            return known[1]
        windows: list[tuple[Limit, Window]] = []
        gauges: list[tuple[Limit, Gauge]] = []
        for limit in limits:
            if limit.per_s is None:
                gauges.append((limit, self._gauges.setdefault(limit.scope, Gauge())))
            else:
                key = (limit.scope, limit.measure, limit.per_s)
                window = self._windows.get(key)
                if window is None:
                    window = self._windows[key] = Window(limit.per_s)
                windows.append((limit, window))
        plan = _Plan(windows, gauges)
        self._plans[id(limits)] = (limits, plan)
        return plan


def _standing(plan: _Plan, now_s: float) -> dict[Measure, Standing]:
    standings: dict[Measure, Standing] = {}
    for limit, window in plan.windows:
        remaining = max(0, limit.amount - window.used(now_s))
        known = standings.get(limit.measure)
        if known is None or remaining < known.remaining:
            standings[limit.measure] = Standing(limit.amount, remaining, window.reset_in_s(now_s))
    return standings
