"""Quotas in Redis, for any number of gateways: each step is one script, atomic over all limits of a request (quotas_redis.lua).

A request is admitted in one round trip. Settlements are sent behind the answer, many at a time, and again until they arrive. A
slot is lost after `LEASE_S` unless the process that took it lives and renews it; everything else of a process that died
stays counted as it was held. A window that Redis does not know (a first use, or somebody flushed it) begins with what the
ledger says, and what was held at that moment counts when it settles.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from policies.errors import QuotaExceeded, QuotaStoreDown
from policies.quotas import Amounts, History, Limit, Measure, Standing, Standings, Used
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
        self.measures = {limit.measure for limit in self.limits}


def _where(span: Span | None) -> dict[str, Any]:
    return {"seconds": span.seconds} if isinstance(span, Rolling) else {"unit": str(span)}


@dataclass(slots=True)
class _Hold:
    plan: _Plan
    held: dict[Measure, int]
    standings: Standings = field(default_factory=dict)


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
        self._unsettled: dict[str, Step] = {}
        self._to_settle = asyncio.Event()
        self._sending = asyncio.Lock()
        self._jobs: list[asyncio.Task[None]] = []

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        if request_id in self._holds or not limits:
            return
        self._start_jobs()
        plan = self._planned(limits)
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
            self._settle_later(self._planned(limits), request_id, used)

    async def look(self, limits: Sequence[Limit]) -> list[Used]:
        plan = self._planned(limits)
        answer = await self._step("look", plan, "", {})
        return [Used(limit, int(answer[1 + 2 * place])) for limit, place in zip(plan.limits, plan.place, strict=True)]

    async def drain(self) -> None:
        waiting = dict(self._unsettled)  # not those that come meanwhile: under load there are always some
        while waiting:
            try:
                await self._send_settlements()
            except QuotaStoreDown:
                return
            waiting = {name: step for name, step in waiting.items() if self._unsettled.get(name) is step}

    async def aclose(self) -> None:
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        if self._unsettled:
            log.error(
                "%d requests could not be settled in Redis; they stay counted as they were held", len(self._unsettled)
            )
        await self._script.aclose()

    async def _step(self, name: str, plan: _Plan, request_id: str, amounts: Amounts) -> Answer:
        """Where a window has never counted, it is told what was used before, and the step is tried again."""
        step = self._step_of(name, plan, request_id, amounts)
        for _ in range(SEEDINGS):
            answer = await self._script.run(step)
            if answer[0] != b"seed":
                return answer
            await self._seed(plan, [int(place) for place in answer[1:]])
        raise QuotaStoreDown("Redis forgets the windows that it is told")

    def _step_of(self, name: str, plan: _Plan, request_id: str, amounts: Amounts) -> Step:
        keys = [f"{self._prefix}seeded", f"{self._prefix}h:{request_id}", *plan.keys]
        own = msgspec.json.encode({"id": request_id, "amounts": amounts})
        return Step(name, keys, plan.opening + b"," + own[1:])

    async def _seed(self, plan: _Plan, places: Sequence[int]) -> None:
        await self.drain()
        seeds = []
        for place in places:
            limit = plan.counted[place]
            assert limit.span is not None
            since_s = reaches_back_to_s(limit.span, self._now())
            used = await self._history.used(limit.scope, limit.measure, since_s=since_s)
            seeds.append([[at_s, amount] for at_s, amount in used])
        keys = [f"{self._prefix}seeded", f"{self._prefix}h:", *(plan.windows[place] for place in places)]
        windows = [plan.given["windows"][place] for place in places]
        await self._script.run(Step("seed", keys, msgspec.json.encode({"windows": windows, "seeds": seeds})))

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
        self._unsettled[request_id] = self._step_of("settle", plan, request_id, counted)
        if len(self._unsettled) > MAX_UNSETTLED:
            del self._unsettled[next(iter(self._unsettled))]
        self._to_settle.set()

    async def _send_settlements(self) -> None:
        async with self._sending:
            batch = dict(list(self._unsettled.items())[:BATCH])
            if batch:
                await self._script.run_many(list(batch.values()))
            for request_id, step in batch.items():
                if self._unsettled.get(request_id) is step:
                    del self._unsettled[request_id]

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
            keys = list(dict.fromkeys(key for key, _ in part))
            given = {"slots": [[keys.index(key), name] for key, name in part], "lease": LEASE_S}
            await self._script.run(
                Step("renew", [f"{self._prefix}seeded", f"{self._prefix}h:", *keys], msgspec.json.encode(given))
            )


def _standings(plan: _Plan, answer: Answer) -> Standings:
    standings: Standings = {}
    for limit, place in zip(plan.limits, plan.place, strict=True):
        remaining = max(0, limit.amount - int(answer[1 + 2 * place]))
        known = standings.get(limit.measure)
        if known is None or remaining < known.remaining:
            standings[limit.measure] = Standing(limit.amount, remaining, float(answer[2 + 2 * place]))
    return standings
