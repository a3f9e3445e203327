"""At most so many requests at a time on one backend; the others wait in turn by caller, so that one busy key delays only itself.

A waiter's future is in its caller's queue until it is given a slot or gives up; slots pass from hand to hand, they are never
free while somebody waits. All on the event loop, without a lock.
"""

import asyncio
import math
from collections import OrderedDict, deque

from backends.errors import BackendBusy

GUESSED_S = 1.0
"""Of one request, where none has ended yet."""


class Slots:
    """
    Args:
        max_waiting: requests in the queue; one more is refused at once.
        max_wait_s: how long one may wait.
    """

    def __init__(self, backend: str, max_concurrent: int, *, max_waiting: int, max_wait_s: float) -> None:
        self._backend = backend
        self._size = max_concurrent
        self._free = max_concurrent
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    def take_free(self) -> bool:
        """Take a slot if one is free; nobody waits then."""
        if self._free > 0:
            self._free -= 1
            return True
        return False

    async def take(self, caller: str, *, usual_s: float | None) -> None:
        """
        Args:
            usual_s: what a request takes here, for the refusal's `retry_after_s`.

        Raises:
            BackendBusy: the queue is full, or the turn did not come in time.
        """
        if self.take_free():
            return
        if self._waiting >= self._max_waiting:
            raise self._busy(usual_s)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append(turn)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                await turn
        except TimeoutError:
            self._leave(caller, turn)
            raise self._busy(usual_s) from None
        except asyncio.CancelledError:
            self._leave(caller, turn)
            raise

    def give(self) -> None:
        """A request has ended: its slot goes to the caller who waits longest for a turn, or is free."""
        while self._queues:
            caller, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[caller] = queue  # behind the others
            self._waiting -= 1
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _leave(self, caller: str, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled():  # it was given a slot at the same moment
            self.give()
            return
        queue = self._queues.get(caller)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self._waiting -= 1
            if not queue:
                del self._queues[caller]

    def _busy(self, usual_s: float | None) -> BackendBusy:
        rounds = math.ceil((self._waiting + 1) / self._size)
        return BackendBusy(self._backend, retry_after_s=max(1.0, rounds * (usual_s or GUESSED_S)))
