"""Runs the steps of one Lua script in Redis: in time, or not at all as far as whoever waits is concerned."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from backends.health import Breaker
from backends.settings import BreakerSettings
from policies.errors import QuotaStoreDown

T = TypeVar("T")

FAILURES = 3
OPEN_S = 1.0
"""After so many failures in a row nobody waits for Redis, but for one request a second that tries it."""

Answer = Sequence[bytes]


class Step(NamedTuple):
    name: str
    keys: Sequence[str]
    given: bytes
    """JSON."""


class Script:
    """
    Args:
        timeout_s: of one call, its connection included.
        clock: Unix seconds for the script; None: Redis's own.
        elapsed: seconds that never go back.
    """

    def __init__(
        self,
        client: Redis,
        text: str,
        *,
        timeout_s: float,
        clock: Callable[[], float] | None,
        elapsed: Callable[[], float],
    ) -> None:
        self._client = client
        self._text = text
        self._timeout_s = timeout_s
        self._clock = clock
        self._breaker = Breaker(BreakerSettings(failures=FAILURES, open_s=OPEN_S), elapsed)
        self._sha = ""

    @property
    def down(self) -> bool:
        """It failed repeatedly and is left alone."""
        return self._breaker.open

    async def run(self, step: Step) -> Answer:
        """
        Raises:
            QuotaStoreDown: what became of the step is not known.
        """
        return await self._in_time(self._called(step))

    async def run_many(self, steps: Sequence[Step]) -> None:
        """In one round trip, each for itself.

        Raises:
            QuotaStoreDown: what became of the steps is not known.
        """
        await self._in_time(self._sent(steps))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _called(self, step: Step) -> Answer:
        await self._loaded()
        try:
            answer: Answer = await self._client.evalsha(self._sha, len(step.keys), *step.keys, *self._arguments(step))
        except NoScriptError:  # it was restarted; EVAL brings the text along and leaves it there
            answer = await self._client.eval(self._text, len(step.keys), *step.keys, *self._arguments(step))
        return answer

    async def _loaded(self) -> None:
        if not self._sha:
            self._sha = str(await self._client.script_load(self._text))

    def _arguments(self, step: Step) -> tuple[str, str, bytes]:
        return step.name, repr(self._clock()) if self._clock is not None else "", step.given

    async def _sent(self, steps: Sequence[Step]) -> None:
        await self._loaded()
        pipeline = self._client.pipeline(transaction=False)
        for step in steps:
            pipeline.evalsha(self._sha, len(step.keys), *step.keys, *self._arguments(step))
        try:
            await pipeline.execute()
        except NoScriptError:
            self._sha = ""
            raise

    async def _in_time(self, call: Coroutine[Any, Any, T]) -> T:
        """In a task of its own: before Python 3.12 `asyncio.wait_for`, which the client uses, may swallow a cancellation, and
        whoever left would be waited for all the same.
        """
        if self._breaker.refuse_for_s() is not None:
            call.close()
            raise QuotaStoreDown("Redis failed repeatedly and is left alone for a moment")
        task = asyncio.create_task(call)
        try:
            await asyncio.wait({task}, timeout=self._timeout_s)
        except BaseException:
            task.cancel()
            task.add_done_callback(_retrieved)
            self._breaker.abandoned()
            raise
        if not task.done():
            task.cancel()
            task.add_done_callback(_retrieved)
            self._breaker.failed()
            raise QuotaStoreDown(f"Redis: no answer within {self._timeout_s:g} s")
        try:
            result = task.result()
        except (RedisError, OSError, TimeoutError) as exc:
            self._breaker.failed()
            raise QuotaStoreDown(f"Redis: {exc}") from exc
        self._breaker.succeeded()
        return result


def _retrieved(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()
