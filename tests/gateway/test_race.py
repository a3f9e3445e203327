"""Hedging: the first result counts, the other is cancelled or thrown away, and failures wait for the other one."""

import asyncio

import pytest

from gateway.race import race

pytestmark = pytest.mark.anyio


class Runner:
    def __init__(self, result: str, *, fails: bool = False) -> None:
        self.result, self.fails = result, fails
        self.go = asyncio.Event()
        self.started = asyncio.Event()
        self.cancelled = False

    async def __call__(self) -> str:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.fails:
            raise ValueError(self.result)
        return self.result


async def nobody(late: str) -> None:
    raise AssertionError(f"{late} was thrown away")


async def test_the_first_alone_where_it_is_in_time() -> None:
    first, second = Runner("first"), Runner("second")
    first.go.set()
    assert await race(first, second, after_s=60, discard=nobody) == "first"
    assert not second.started.is_set()


async def test_the_second_overtakes_and_the_first_is_cancelled() -> None:
    first, second = Runner("first"), Runner("second")
    second.go.set()
    assert await race(first, second, after_s=0.01, discard=nobody) == "second"
    assert first.cancelled


async def test_the_first_may_still_win() -> None:
    first, second = Runner("first"), Runner("second")
    racing = asyncio.create_task(race(first, second, after_s=0.01, discard=nobody))
    await second.started.wait()
    first.go.set()
    assert await racing == "first"
    assert second.cancelled


async def test_a_failure_of_one_waits_for_the_other() -> None:
    for failing in (0, 1):
        runners = [Runner("first", fails=failing == 0), Runner("second", fails=failing == 1)]
        racing = asyncio.create_task(race(*runners, after_s=0.01, discard=nobody))
        await runners[1].started.wait()
        runners[failing].go.set()
        await asyncio.wait([racing], timeout=0.02)
        assert not racing.done()
        runners[1 - failing].go.set()
        assert await racing == runners[1 - failing].result


async def test_when_both_fail_it_is_the_firsts_failure() -> None:
    first, second = Runner("first", fails=True), Runner("second", fails=True)
    second.go.set()
    racing = asyncio.create_task(race(first, second, after_s=0.01, discard=nobody))
    await second.started.wait()
    first.go.set()
    with pytest.raises(ValueError, match="first"):
        await racing


async def test_a_first_that_fails_in_time_starts_no_second() -> None:
    first, second = Runner("first", fails=True), Runner("second")
    first.go.set()
    with pytest.raises(ValueError, match="first"):
        await race(first, second, after_s=60, discard=nobody)
    assert not second.started.is_set()


async def test_leaving_cancels_both() -> None:
    first, second = Runner("first"), Runner("second")
    racing = asyncio.create_task(race(first, second, after_s=0.01, discard=nobody))
    await second.started.wait()
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert (first.cancelled, second.cancelled) == (True, True)


async def test_two_results_at_the_same_moment_leave_one_to_throw_away() -> None:
    thrown: list[str] = []

    async def discard(late: str) -> None:
        thrown.append(late)

    first, second = Runner("first"), Runner("second")
    racing = asyncio.create_task(race(first, second, after_s=0.01, discard=discard))
    await second.started.wait()
    first.go.set()
    second.go.set()
    assert sorted([await racing, *thrown]) == ["first", "second"]
