"""Slots and their queue: never more at once than allowed, fair by caller, nothing lost whoever leaves when."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import BackendBusy
from backends.slots import Slots

pytestmark = pytest.mark.anyio


def slots(size: int = 1, *, waiting: int = 10, wait_s: float = 60.0) -> Slots:
    return Slots("up", size, max_waiting=waiting, max_wait_s=wait_s)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_queue_goes_round_by_caller() -> None:
    queue, served = slots(), []

    async def ask(caller: str, name: str) -> None:
        await queue.take(caller, usual_s=None)
        served.append(name)
        await asyncio.sleep(0)
        queue.give()

    await queue.take("first", usual_s=None)
    names = [("greedy", "g1"), ("greedy", "g2"), ("greedy", "g3"), ("modest", "m1"), ("third", "t1")]
    tasks = [asyncio.create_task(ask(caller, name)) for caller, name in names]
    await settled()
    assert queue.waiting == 5
    queue.give()
    await asyncio.gather(*tasks)
    assert served == ["g1", "m1", "t1", "g2", "g3"]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    queue = slots(2, waiting=3)
    for _ in range(2):
        await queue.take("a", usual_s=None)
    waiters = [asyncio.create_task(queue.take("a", usual_s=None)) for _ in range(3)]
    await settled()
    with pytest.raises(BackendBusy) as caught:
        await queue.take("b", usual_s=4.0)
    assert caught.value.retry_after_s == 8.0  # four before it and itself, two at a time, four seconds each
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert queue.waiting == 0


async def test_whoever_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    queue = slots(wait_s=0.01)
    await queue.take("a", usual_s=None)
    with pytest.raises(BackendBusy):
        await queue.take("b", usual_s=None)
    assert queue.waiting == 0
    queue.give()
    await queue.take("c", usual_s=None)


async def test_a_slot_that_is_given_to_somebody_who_leaves_at_that_moment_is_passed_on() -> None:
    queue = slots()
    await queue.take("a", usual_s=None)
    leaving, staying = (asyncio.create_task(queue.take(name, usual_s=None)) for name in ("b", "c"))
    await settled()
    queue.give()  # b's turn, which it has not noticed yet
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    async with asyncio.timeout(5):
        await staying
    queue.give()
    await queue.take("d", usual_s=None)


STEPS = st.lists(st.tuples(st.sampled_from(["take", "give", "cancel"]), st.integers(0, 3)), max_size=40)


@given(steps=STEPS, size=st.integers(1, 3))
def test_no_slot_is_lost_or_made_up(steps: list[tuple[str, int]], size: int) -> None:
    async def play() -> None:
        queue, held = slots(size, waiting=1000), 0
        tasks: list[asyncio.Task[None]] = []
        for what, number in steps:
            if what == "take":
                tasks.append(asyncio.create_task(queue.take(str(number), usual_s=None)))
            elif what == "give" and held:
                held -= 1
                queue.give()
            elif what == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            await settled()
            done = [task for task in tasks if task.done()]
            held += sum(1 for task in done if not task.cancelled())
            tasks = [task for task in tasks if not task.done()]
            assert held <= size
            assert not tasks or held == size, "somebody waits beside a free slot"
            assert queue.waiting == len(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(held):
            queue.give()
        for _ in range(size):
            await asyncio.wait_for(queue.take("end", usual_s=None), 1)

    asyncio.run(play())
