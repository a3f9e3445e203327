"""Who is inside, and a way to have nobody inside for a while."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class StillInside(Exception):
    """Those who are inside take too long; nothing has changed."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} still inside")
        self.count = count


class Gate:
    """While it is paused, whoever comes waits outside; those who are inside end first."""

    def __init__(self) -> None:
        self.inside_now = 0
        self._pauses = 0
        self._open = asyncio.Event()
        self._open.set()
        self._left = asyncio.Event()

    @property
    def is_paused(self) -> bool:
        return self._pauses > 0

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        while self._pauses:
            await self._open.wait()
        self.inside_now += 1
        try:
            yield
        finally:
            self.inside_now -= 1
            if not self.inside_now:
                self._left.set()

    @contextlib.asynccontextmanager
    async def paused(self, wait_s: float) -> AsyncIterator[None]:
        """
        Raises:
            StillInside: after `wait_s`.
        """
        self._pauses += 1
        self._open.clear()
        try:
            try:
                async with asyncio.timeout(wait_s):
                    while self.inside_now:
                        self._left.clear()
                        await self._left.wait()
            except TimeoutError:
                raise StillInside(self.inside_now) from None
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:
                self._open.set()
