"""Whom to ask next, and after what pause: one request's way along its route."""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from backends.errors import BackendError, BackendUnavailable
from policies.retries import deserves_another, pause_s
from policies.routing import Station


def random_jitter() -> float:
    return secrets.randbelow(1000) / 1000


class Tries:
    """
    Args:
        model: the name that the client asked for.
        stations: those that may be asked, in order.
        retries: extra attempts on the same station.
        jitter: gives numbers in [0, 1).
    """

    def __init__(
        self,
        model: str,
        stations: Iterable[Station],
        *,
        retries: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random_jitter,
    ) -> None:
        self._model = model
        self._stations = deque(stations)
        self._retries = retries
        self._sleep = sleep
        self._jitter = jitter
        self._failures_here = 0
        self._last_failure: BackendError | None = None

    def failed(self, failure: BackendError) -> None:
        """Say so before the next `next`."""
        self._last_failure = failure
        self._failures_here += 1

    async def next(self) -> Station | None:
        """The station to ask now: the same again after a pause, else the one behind it; None: nobody is left."""
        if self._last_failure is not None and not await self._paused(self._last_failure):
            if not deserves_another(self._last_failure):
                return None
            self._stations.popleft()
            self._failures_here = 0
        return self._stations[0] if self._stations else None

    def split(self) -> "Tries":
        """The way along the stations behind the present one, which keeps that one for itself."""
        behind = [self._stations.pop() for _ in range(len(self._stations) - 1)]
        return Tries(self._model, reversed(behind), retries=self._retries, sleep=self._sleep, jitter=self._jitter)

    async def _paused(self, failure: BackendError) -> bool:
        """True: the same station may be asked again, and the pause is over."""
        if self._failures_here > self._retries:
            return False
        pause = pause_s(failure, failed=self._failures_here, jitter=self._jitter())
        if pause is None:
            return False
        await self._sleep(pause)
        return True

    @property
    def failure(self) -> BackendError:
        """Why nobody answered."""
        words = "no backend of its route may be used for this request"
        return self._last_failure or BackendUnavailable(self._model, words)
