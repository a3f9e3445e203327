"""Jobs on the engine's thread, seen from a worker's callers."""

import asyncio
import sys

import pytest

from backends.llamacpp.backend import LocalBackend
from tests.backends.llamacpp.local import chat, texts
from tests.backends.llamacpp.test_api import ON_AND_ON

pytestmark = pytest.mark.anyio


LATE_END = """
import asyncio
from backends.llamacpp.scheduler import Scheduler, Step, _Job

async def main():
    job = _Job(lambda job: None)
    steps = Scheduler(lambda: None, name="m")._steps(job)
    job.put(Step("a", 1))
    job.put(Step("b", 1, "stop"))
    said = [await anext(steps)]
    job.put(None)  # the thread was interrupted between the last step and the word that nothing follows
    said += [step async for step in steps]
    print([tuple(step) for step in said])

asyncio.run(main())
"""
"""In a process of its own: the scheduler's module loads llama.cpp."""


async def test_the_end_of_an_answer_is_said_once_also_when_the_last_word_comes_late() -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LATE_END, stdout=pipe)
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert out.decode().strip() == "[('ab', 2, 'stop')]"


async def test_many_callers_wait_for_each_other_and_get_the_answer_each_would_get_alone(local: LocalBackend) -> None:
    asked = [chat(f"question {number}", max_tokens=3, logit_bias=ON_AND_ON) for number in range(8)]
    together = await asyncio.gather(*(texts(local, one) for one in asked))
    assert together == [await texts(local, one) for one in asked]


async def test_a_waiting_caller_who_leaves_does_not_hold_up_the_others(local: LocalBackend) -> None:
    callers = [asyncio.create_task(texts(local, chat())) for _ in range(3)]
    callers[1].cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert (results[0] == results[2], isinstance(results[1], asyncio.CancelledError)) == (True, True)
