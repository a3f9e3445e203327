"""Several answers of one request, side by side."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

T = TypeVar("T")


async def side_by_side(
    sources: Sequence[AsyncGenerator[T, None]], *, at_once: int
) -> AsyncGenerator[tuple[int, T], None]:
    """(which, item) of all of them as they come, at most so many at a time. The first failure ends the others."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for item in only:
                yield 0, item
        return
    funnel: _Funnel[T] = _Funnel(at_once)
    tasks = [asyncio.create_task(funnel.read(number, source)) for number, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            came = await funnel.next()
            if came is not None:
                yield came
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Funnel(Generic[T]):
    def __init__(self, at_once: int) -> None:
        self._came: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
        self._turns = asyncio.Semaphore(at_once)

    async def next(self) -> tuple[int, T] | None:
        """None: one of the sources has ended."""
        came = await self._came.get()
        if isinstance(came, Exception):
            raise came
        return came

    async def read(self, number: int, source: AsyncGenerator[T, None]) -> None:
        try:
            async with self._turns, aclosing(source) as items:
                async for item in items:
                    self._came.put_nowait((number, item))
            self._came.put_nowait(None)
        except Exception as failure:  # noqa: BLE001 - whoever reads gets it
            self._came.put_nowait(failure)
