"""A stream read as fast as it comes, whoever takes it how slowly: the worker and its place in memory are not held by slow clients."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from backends.base import Event


async def read_ahead(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events, those that have piled up as one. What waits is bounded by what one answer can hold."""
    box: deque[Event] = deque()
    came, failures = asyncio.Event(), list[Exception]()
    ended = False

    async def read() -> None:
        nonlocal ended
        try:
            async with aclosing(events):
                async for event in events:
                    box.append(event)
                    came.set()
        except Exception as failure:  # noqa: BLE001 - told to whoever reads, behind everything that came before
            failures.append(failure)
        finally:
            ended = True
            came.set()

    task = asyncio.create_task(read())
    try:
        while not ended or box:
            await came.wait()
            came.clear()
            if box:
                yield _joined(box)
                if box or ended:
                    came.set()
        if failures:
            raise failures[0]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _joined(box: deque[Event]) -> Event:
    if len(box) == 1:
        return box.popleft()
    events = [box.popleft() for _ in range(len(box))]
    usage = next((event.usage for event in reversed(events) if event.usage is not None), None)
    text_bytes = sum(event.text_bytes for event in events)
    return Event(b"".join(event.raw for event in events), usage, text_bytes, events[-1].last)
