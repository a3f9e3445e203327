"""Quotas in Redis, for any number of gateways: each step is one script, atomic over all limits of a request (quotas_redis.lua).

A request is admitted in one round trip. Settlements are sent behind the answer, many at a time, and again until they arrive. A
slot is lost after `LEASE_S` unless the process that took it lives and renews it; everything else of a process that died
stays counted as it was held. A window that Redis does not know (a first use, or somebody flushed it) begins with what the
ledger says, a few seconds later with what the ledger has learned since, and what was held at that moment counts when it
settles.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from policies.errors import QuotaExceeded, QuotaStoreDown
from policies.quotas import Amounts, History, Limit, Measure, Standing, Standings
from policies.redis_script import Answer, Script, Step
from policies.spans import Rolling, Span, reaches_back_to_s

log = logging.getLogger("chasqui.quotas")

PREFIX = "{chasqui}:"
"""With braces: in a cluster, all of it lies on one node."""

LEASE_S = 60.0
RENEWALS = 3
"""Of a slot while its lease lasts."""

RETRY_S = 0.5
BATCH = 128
MAX_UNSETTLED = 100_000
SEEDINGS = 3
"""Attempts to tell Redis what was used before; somebody may flush it in between."""

RECENT_S = 60.0
TOP_UP_S = 3.0
"""By then, what had ended when a window was told its history is in the ledger, by whatever gateway."""

MAX_PLANS = 10_000

CONNECTIONS = 64

TEXT = (Path(__file__).parent / "quotas_redis.lua").read_text("utf-8")


def client_of(url: str, *, timeout_s: float) -> Redis:
    """A client that tries once: who waits for how long is decided here. Connects when it is first used."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=CONNECTIONS,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


class _Plan:
    """A caller's limits as the script takes them; limits may share a window."""

    def __init__(self, limits: Sequence[Limit], prefix: str) -> None:
        self.limits = [limit for limit in limits if limit.span is not None]
        self.gauges = [limit for limit in limits if limit.span is None]
        windows = {f"{prefix}w:{limit.scope}|{limit.measure}|{limit.span}": limit for limit in self.limits}
        self.windows = list(windows)
        self.counted = list(windows.values())
        """Of each window, a limit that counts in it."""
        self.place = [self.windows.index(f"{prefix}w:{one.scope}|{one.measure}|{one.span}") for one in self.limits]
        """Of each limit, its window."""
        self.keys = [*self.windows, *(f"{prefix}c:{limit.scope}" for limit in self.gauges)]
        self.given: dict[str, Any] = {
            "windows": [{"measure": one.measure, **_where(one.span)} for one in self.counted],
            "limits": [[place, limit.amount] for place, limit in zip(self.place, self.limits, strict=True)],
            "gauges": [limit.amount for limit in self.gauges],
            "lease": LEASE_S,
        }
        self.opening = msgspec.json.encode(self.given)[:-1]
        """`given` without its closing brace: each step adds its own."""
        self.making_up: asyncio.Task[None] | None = None
        """Adds what was used while no limit named these windows; once."""
        self.measures = {limit.measure for limit in self.limits}


def _where(span: Span | None) -> dict[str, Any]:
    return {"seconds": span.seconds} if isinstance(span, Rolling) else {"unit": str(span)}


@dataclass(slots=True)
class _Hold:
    plan: _Plan
    held: dict[Measure, int]
    standings: Standings = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Settlement:
    plan: _Plan
    request_id: str
    amounts: Amounts
    sent: bool = False
    """Before, and nobody knows whether it arrived."""


class RedisQuotas:
    """
    Args:
        client: connects when it is first used; closed with this.
        history: what was used before a window began to count.
        timeout_s: of one step; then the store counts as down.
        now: Unix seconds, for what the history is asked.
        elapsed: seconds that never go back.
        clock: Unix seconds that windows go by; None: Redis's own, which all gateways share.
    """

    def __init__(
        self,
        client: Redis,
        history: History,
        *,
        timeout_s: float,
        now: Callable[[], float],
        elapsed: Callable[[], float],
        clock: Callable[[], float] | None = None,
        prefix: str = PREFIX,
    ) -> None:
        self._script = Script(client, TEXT, timeout_s=timeout_s, clock=clock, elapsed=elapsed)
        self._history = history
        self._now = clock or now
        self._prefix = prefix
        self._plans: dict[int, tuple[Sequence[Limit], _Plan]] = {}
        self._holds: dict[str, _Hold] = {}
        self._unsettled: dict[str, _Settlement] = {}
        self._seeding: dict[str, asyncio.Task[None]] = {}
        self._topping_up: set[asyncio.Task[None]] = set()
        self._timeout_s = timeout_s
        self._to_settle = asyncio.Event()
        self._sending = asyncio.Lock()
        self._jobs: list[asyncio.Task[None]] = []

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        if request_id in self._holds or not limits:
            return
        self._start_jobs()
        plan = self._planned(limits)
        if plan.making_up is None:
            plan.making_up = asyncio.create_task(self._make_up(plan), name="make up in Redis")
        if not plan.making_up.done():
            await asyncio.wait({plan.making_up}, timeout=self._timeout_s)
        try:
            answer = await self._step("reserve", plan, request_id, amounts)
        except BaseException:  # also of a client that left: what Redis has taken by then is given back
            self._settle_later(plan, request_id, dict.fromkeys(amounts, 0))
            raise
        self._refuse_if_full(plan, answer, amounts)
        held = {measure: amount for measure, amount in amounts.items() if measure in plan.measures}
        self._holds[request_id] = _Hold(plan, held, _standings(plan, answer))

    async def raise_to(self, request_id: str, amounts: Amounts) -> None:
        hold = self._holds.get(request_id)
        if hold is None:
            return
        more = {
            measure: amount
            for measure, amount in amounts.items()
            if measure in hold.plan.measures and amount > hold.held.get(measure, 0)
        }
        if more:
            answer = await self._step("raise", hold.plan, request_id, more)
            self._refuse_if_full(hold.plan, answer, more)
            hold.held.update(more)
            hold.standings = _standings(hold.plan, answer)

    def standing(self, request_id: str) -> Standings:
        hold = self._holds.get(request_id)
        return hold.standings if hold is not None else {}

    def settle(self, request_id: str, used: Amounts) -> Standings:
        hold = self._holds.pop(request_id, None)
        if hold is None:
            return {}
        self._settle_later(hold.plan, request_id, {**hold.held, **used})
        return {
            measure: Standing(
                one.limit,
                max(0, min(one.limit, one.remaining + hold.held.get(measure, 0) - used.get(measure, hold.held.get(measure, 0)))),
                one.reset_s,
            )
            for measure, one in hold.standings.items()
        }  # fmt: skip

    def charge(self, request_id: str, limits: Sequence[Limit], used: Amounts) -> None:
        if limits:
            self._start_jobs()
            # Not under the request's own id: what that may have reserved is being given back.
            self._settle_later(self._planned(limits), f"{request_id}:alone", used)

    async def drain(self) -> None:
        waiting = dict(self._unsettled)  # not those that come meanwhile: under load there are always some
        while waiting:
            try:
                await self._send_settlements()
            except QuotaStoreDown:
                return
            waiting = {name: step for name, step in waiting.items() if self._unsettled.get(name) is step}

    async def aclose(self) -> None:
        made_up = [plan.making_up for _, plan in self._plans.values() if plan.making_up is not None]
        jobs = [*self._jobs, *self._seeding.values(), *self._topping_up, *made_up]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        if self._unsettled:
            log.error(
                "%d requests could not be settled in Redis; they stay counted as they were held", len(self._unsettled)
            )
        await self._script.aclose()

    async def _step(self, name: str, plan: _Plan, request_id: str, amounts: Amounts) -> Answer:
        """Where a window does not know what was used before, it is told, and the step is tried again; within the time of one step."""
        step = self._step_of(name, plan, request_id, amounts)
        async with _within(self._timeout_s):
            for _ in range(SEEDINGS):
                answer = await self._script.run(step)
                if answer[0] != b"seed":
                    return answer
                for place in answer[1:]:
                    await self._seed_once(plan, int(place))
        raise QuotaStoreDown("Redis forgets the windows that it is told")

    def _step_of(self, name: str, plan: _Plan, request_id: str, amounts: Amounts, *, again: bool = False) -> Step:
        own = msgspec.json.encode({"id": request_id, "amounts": amounts} | ({"again": True} if again else {}))
        return Step(name, [f"{self._prefix}h:{request_id}", *plan.keys], plan.opening + b"," + own[1:])

    async def _make_up(self, plan: _Plan) -> None:
        totals = []
        try:
            for limit in plan.counted:
                assert limit.span is not None
                since_s = reaches_back_to_s(limit.span, self._now())
                used = await self._history.used(limit.scope, limit.measure, since_s=since_s, whole=True)
                totals.append(sum(amount for _, amount in used))
            given = {"windows": plan.given["windows"], "seeds": totals}
            await self._script.run(Step("at_least", [f"{self._prefix}h:", *plan.windows], msgspec.json.encode(given)))
        except QuotaStoreDown as exc:
            log.warning("what was used while a limit was not in force may be missing: %s", exc.why)

    async def _seed_once(self, plan: _Plan, place: int) -> None:
        """Many may wait for the same window; whoever leaves does not take its history with him."""
        name = plan.windows[place]
        task = self._seeding.get(name)
        if task is None:
            task = self._seeding[name] = asyncio.create_task(self._seed(plan, place), name="seed a window in Redis")
            task.add_done_callback(lambda done: self._seeded(name, done))
        await asyncio.shield(task)

    def _seeded(self, name: str, task: "asyncio.Task[None]") -> None:
        self._seeding.pop(name, None)
        if not task.cancelled():
            task.exception()  # told to those who wait; there may be none

    async def _seed(self, plan: _Plan, place: int) -> None:
        limit, name, window = plan.counted[place], plan.windows[place], plan.given["windows"][place]
        assert limit.span is not None
        recent_s = self._now() - RECENT_S
        known = await self._history.recent(limit.scope, limit.measure, since_s=recent_s, until_s=self._now())
        used = await self._history.used(limit.scope, limit.measure, since_s=reaches_back_to_s(limit.span, self._now()))
        seeded_s = self._now()
        given = {"windows": [window], "seeds": [[[at_s, amount] for at_s, amount in used]]}
        await self._script.run(Step("seed", [f"{self._prefix}h:", name], msgspec.json.encode(given)))
        later = asyncio.create_task(self._top_up(limit, name, window, (recent_s, seeded_s), known), name="top up")
        self._topping_up.add(later)
        later.add_done_callback(self._topping_up.discard)

    async def _top_up(
        self, limit: Limit, name: str, window: dict[str, Any], between_s: tuple[float, float], known: int
    ) -> None:
        """What had ended when a window was told its history, and reached the ledger only afterwards: other gateways write it a
        second later. Who settled in between may count twice, never not at all."""
        await asyncio.sleep(TOP_UP_S)
        try:
            now_known = await self._history.recent(
                limit.scope, limit.measure, since_s=between_s[0], until_s=between_s[1]
            )
            given = {"windows": [window], "seeds": [max(0, now_known - known)]}
            await self._script.run(Step("top_up", [f"{self._prefix}h:", name], msgspec.json.encode(given)))
        except QuotaStoreDown as exc:
            log.error("a window in Redis may lack what was used in the last seconds before it was flushed: %s", exc.why)

    def _refuse_if_full(self, plan: _Plan, answer: Answer, amounts: Amounts) -> None:
        if answer[0] == b"late":
            raise QuotaStoreDown("the request was given up before Redis answered")
        if answer[0] != b"full":
            return
        worst: tuple[float, Limit] | None = None
        found = answer[1 + 2 * len(plan.windows) :]
        for what, wait in zip(found[::2], found[1::2], strict=True):
            kind, place, amount = what.decode().split(":")
            limits = plan.gauges if kind == "gauge" else plan.counted
            limit = limits[int(place)]._replace(amount=int(amount))
            wait_s = math.inf if kind == "window" and amounts[limit.measure] > limit.amount else float(wait)
            if worst is None or wait_s > worst[0]:
                worst = (wait_s, limit)
        assert worst is not None
        wait_s, limit = worst
        raise QuotaExceeded(
            limit,
            needed=amounts[limit.measure],
            retry_after_s=None if math.isinf(wait_s) else wait_s,
            standings=_standings(plan, answer),
        )

    def _planned(self, limits: Sequence[Limit]) -> _Plan:
        """By the identity of the limits, which is kept from being another's as long as it is here."""
        known = self._plans.get(id(limits))
        if known is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            known = self._plans[id(limits)] = (limits, _Plan(limits, self._prefix))
        return known[1]

    def _settle_later(self, plan: _Plan, request_id: str, amounts: Amounts) -> None:
        counted = {measure: amount for measure, amount in amounts.items() if measure in plan.measures}
        self._unsettled[request_id] = _Settlement(plan, request_id, counted)
        if len(self._unsettled) > MAX_UNSETTLED:
            del self._unsettled[next(iter(self._unsettled))]
        self._to_settle.set()

    async def _send_settlements(self) -> None:
        async with self._sending:
            batch = list(itertools.islice(self._unsettled.values(), BATCH))
            steps = [self._step_of("settle", one.plan, one.request_id, one.amounts, again=one.sent) for one in batch]
            for one in batch:
                one.sent = True
            if steps:
                await self._script.run_many(steps)
            for one in batch:
                if self._unsettled.get(one.request_id) is one:
                    del self._unsettled[one.request_id]

    def _start_jobs(self) -> None:
        if not self._jobs:
            self._jobs = [
                asyncio.create_task(self._keep_settling(), name="settle in Redis"),
                asyncio.create_task(self._keep_renewing(), name="renew slots in Redis"),
            ]

    async def _keep_settling(self) -> None:
        while True:
            await self._to_settle.wait()
            try:
                await self._send_settlements()
                if not self._unsettled:
                    self._to_settle.clear()
            except QuotaStoreDown as exc:
                log.debug("settlements wait: %s", exc.why)
                await asyncio.sleep(RETRY_S)

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / RENEWALS)
            try:
                await self.renew()
            except QuotaStoreDown as exc:
                log.warning("slots could not be renewed: %s", exc.why)

    async def renew(self) -> None:
        """The slots of all requests that are being worked on.

        Raises:
            QuotaStoreDown
        """
        slots = [(key, name) for name, hold in self._holds.items() for key in hold.plan.keys[len(hold.plan.windows) :]]
        for start in range(0, len(slots), BATCH):
            part = slots[start : start + BATCH]
            gauges, holds = list(dict.fromkeys(key for key, _ in part)), list(dict.fromkeys(name for _, name in part))
            keys = [*gauges, *(f"{self._prefix}h:{name}" for name in holds)]
            places = [[gauges.index(key), name, len(gauges) + holds.index(name)] for key, name in part]
            await self._script.run(Step("renew", keys, msgspec.json.encode({"slots": places, "lease": LEASE_S})))


@asynccontextmanager
async def _within(timeout_s: float) -> AsyncIterator[None]:
    """
    Raises:
        QuotaStoreDown: it took longer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise QuotaStoreDown(f"what was used before was not told within {timeout_s:g} s") from None


def _standings(plan: _Plan, answer: Answer) -> Standings:
    standings: Standings = {}
    for limit, place in zip(plan.limits, plan.place, strict=True):
        remaining = max(0, limit.amount - int(answer[1 + 2 * place]))
        known = standings.get(limit.measure)
        if known is None or remaining < known.remaining:
            standings[limit.measure] = Standing(limit.amount, remaining, float(answer[2 + 2 * place]))
    return standings
