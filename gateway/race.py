"""Hedging: when the first station takes its time, the next one is asked as well, and whoever answers first has the request."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def race(
    first: Callable[[], Awaitable[T]],
    second: Callable[[], Awaitable[T]],
    *,
    after_s: float,
    discard: Callable[[T], Awaitable[None]],
) -> T:
    """The first result of the two; `second` starts `after_s` later, or when `first` has failed by then, never.

    Args:
        discard: for the result of one that came in too late to be cancelled.

    Raises:
        Exception: of `first`, when both failed.
    """
    tasks = [asyncio.ensure_future(first())]
    try:
        await asyncio.wait(tasks, timeout=after_s)
        if not tasks[0].done():
            tasks.append(asyncio.ensure_future(second()))
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done and task.exception() is None:
                    tasks.remove(task)
                    return task.result()
        return tasks[0].result()  # which raises
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, BaseException):
                await discard(outcome)
