"""A backend's health as its requests tell it, and the breaker's states."""

import asyncio
from contextlib import aclosing

import pytest

from backends.base import CHAT, Answer, Call, Event
from backends.errors import BackendError, BackendUnavailable, UpstreamBroken, UpstreamRefused
from backends.health import FORGETTING_S, Breaker, Facts, Watched
from backends.scripted import Scripted, Step, chat_answer
from backends.settings import BreakerSettings
from backends.slots import Slots
from backends.wire import Body, Usage

pytestmark = pytest.mark.anyio

CALL = Call(CHAT, Body(b"{}"), "r", "m")
GOOD = chat_answer("hello", Usage(1, 1))
BROKEN = UpstreamBroken("b", "500")
REFUSED = UpstreamRefused("b", 400, "m", type_="t", code=None, param=None)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """One watched backend whose next step a test sets."""

    def __init__(self, failures: int = 2, open_s: float = 10.0) -> None:
        self.clock = Clock()
        self.steps: list[Step] = []
        self.inner = Scripted("b", self.steps)
        self.watched = Watched(
            self.inner, Breaker(BreakerSettings(failures=failures, open_s=open_s), self.clock), self.clock
        )

    async def ask(self, step: Step) -> object:
        self.steps[:] = [step]
        try:
            return await self.watched.complete(CALL)
        except BackendError as failure:
            return failure

    async def stream(self, *steps: Step) -> object:
        self.steps[:] = steps
        try:
            async with aclosing(self.watched.stream(CALL)) as events:
                return [event.raw async for event in events]
        except BackendError as failure:
            return failure


async def test_it_opens_after_failures_in_a_row_and_refuses_without_asking() -> None:
    house = House()
    assert [await house.ask(BROKEN) for _ in range(2)] == [BROKEN, BROKEN]
    refused = await house.ask(GOOD)
    assert isinstance(refused, BackendUnavailable)
    assert refused.retry_after_s == 10
    assert len(house.inner.calls) == 2
    assert house.watched.status() == "failed"


async def test_a_success_in_between_starts_the_count_anew_and_refusals_are_answers() -> None:
    house = House()
    for step in (BROKEN, GOOD, BROKEN, REFUSED, BROKEN):
        await house.ask(step)
    assert await house.ask(GOOD) is GOOD


async def test_half_open_lets_one_through_and_its_fate_decides() -> None:
    house = House()
    for _ in range(2):
        await house.ask(BROKEN)
    house.clock.now_s += 10
    assert await house.ask(BROKEN) is BROKEN
    assert isinstance(await house.ask(GOOD), BackendUnavailable)
    house.clock.now_s += 10
    assert await house.ask(GOOD) is GOOD
    assert await house.ask(GOOD) is GOOD
    assert house.watched.status() == "ready"


async def test_while_a_probe_is_under_way_the_others_are_refused_and_a_client_that_leaves_gives_it_back() -> None:
    house = House()
    for _ in range(2):
        await house.ask(BROKEN)
    house.clock.now_s += 10
    gate = asyncio.Event()
    house.steps[:] = [gate, GOOD]
    probe = asyncio.create_task(house.watched.complete(CALL))
    await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable):
        await house.watched.complete(CALL)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert await house.ask(GOOD) is GOOD


async def test_streams_that_break_in_the_middle_count_as_failures() -> None:
    house = House()
    for _ in range(2):
        assert await house.stream(Event(b"x"), BROKEN) is BROKEN
    assert isinstance(await house.stream(Event(b"x", last=True)), BackendUnavailable)


async def test_the_first_event_closes_a_breaker_that_waits_for_a_sign_of_life() -> None:
    house = House()
    for _ in range(2):
        await house.ask(BROKEN)
    house.clock.now_s += 10
    house.steps[:] = [Event(b"x"), Event(b"y", last=True)]
    async with aclosing(house.watched.stream(CALL)) as events:
        await anext(events)
        assert house.watched.status() == "ready"


async def test_what_is_in_flight_and_how_long_it_took_is_known() -> None:
    house = House()
    assert house.watched.facts == Facts(0, None)
    gate = asyncio.Event()
    house.steps[:] = [gate, GOOD]
    task = asyncio.create_task(house.watched.complete(CALL))
    await asyncio.sleep(0)
    assert house.watched.facts.in_flight == 1
    house.clock.now_s += 2
    gate.set()
    await task
    assert house.watched.facts == Facts(0, 2.0)
    await house.ask(GOOD)
    assert house.watched.facts.latency_s == pytest.approx(1.6)


async def test_without_a_breaker_nothing_is_refused() -> None:
    inner = Scripted("b", [BROKEN])
    watched = Watched(inner, None, Clock())
    for _ in range(20):
        with pytest.raises(UpstreamBroken):
            await watched.complete(CALL)
    assert len(inner.calls) == 20


async def test_a_latency_fades_so_that_a_station_that_was_slow_once_is_asked_again() -> None:
    house = House()
    house.watched._latency_s, house.watched._observed_s = 8.0, house.clock.now_s
    house.clock.now_s += FORGETTING_S
    assert house.watched.facts.latency_s == 4.0
    house.clock.now_s += FORGETTING_S
    assert house.watched.facts.latency_s == 2.0


async def test_an_open_breaker_refuses_at_once_though_all_slots_are_taken() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=1, open_s=10), clock)
    slots = Slots("b", 1, max_waiting=10, max_wait_s=60)
    watched = Watched(Scripted("b", [GOOD, GOOD]), breaker, clock, slots)
    await slots.take("somebody", usual_s=None)
    breaker.failed()
    async with asyncio.timeout(5):
        with pytest.raises(BackendUnavailable, match="left alone"):
            await watched.complete(CALL)
    slots.give()
    clock.now_s += 10
    assert isinstance(await watched.complete(CALL), Answer), "one that only looked did not become the probe"
