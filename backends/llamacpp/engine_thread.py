"""The thread that owns the engine, and the way there and back from asyncio.

Work comes in through `submit`, from the event loop; what becomes of it goes back in one call of the loop for each step of the engine,
however many requests had a part in it. Subclasses say what a step is.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from backends.errors import BackendBusy

if TYPE_CHECKING:  # whoever imports that module loads llama.cpp
    from backends.llamacpp.engine import Engine

JobT = TypeVar("JobT", bound="Job")


class Job:
    """One piece of work for the thread, and the mailbox for what comes of it."""

    def __init__(self) -> None:
        self.cancelled = False
        """Nobody waits for it any more. Set on the loop, read on the thread."""
        self._box: deque[Any] = deque()
        self._filled = asyncio.Event()

    def receive(self, item: Any) -> None:
        """On the loop."""
        self._box.append(item)
        self._filled.set()

    async def take(self) -> list[Any]:
        """Everything that has come; waits for at least one."""
        await self._filled.wait()
        self._filled.clear()
        return [self._box.popleft() for _ in range(len(self._box))]


class EngineThread(ABC, Generic[JobT]):
    """
    Args:
        make_engine: called on the thread, so that one thread alone ever sees the engine's context.
        max_waiting: jobs that may wait; one more is `BackendBusy`.
    """

    def __init__(self, make_engine: Callable[[], "Engine"], *, name: str, max_waiting: int) -> None:
        self._make_engine = make_engine
        self._name = name
        self._max_waiting = max_waiting
        self._inbox: deque[JobT] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._outbox: list[tuple[Job, Any]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._started: asyncio.Future[Engine] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.engine: Engine

    async def start(self) -> "Engine":
        """
        Raises:
            ModelFileUnusable
        """
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._thread.start()
        self.engine = await self._started
        return self.engine

    def submit(self, job: JobT) -> None:
        """
        Raises:
            BackendBusy
        """
        with self._wake:
            if self.waiting >= self._max_waiting:
                raise BackendBusy(self._name, retry_after_s=self.wait_s())
            self._inbox.append(job)
            self._wake.notify()

    def close(self) -> None:
        """End the thread after the step it is in; what is not done is not done any more."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Jobs that nothing is done for yet."""

    @property
    @abstractmethod
    def running(self) -> int:
        """Jobs that something is done for."""

    @abstractmethod
    def wait_s(self) -> float:
        """How long it takes until somebody who came now would have a turn, as far as can be told."""

    @abstractmethod
    def _accept(self, job: JobT) -> None:
        """A job has come in. On the thread, as the rest."""

    @property
    @abstractmethod
    def _busy(self) -> bool:
        """There is something to do."""

    @abstractmethod
    def _step(self) -> None:
        """Do a little of it."""

    @abstractmethod
    def _abandon(self, failure: Exception) -> None:
        """The engine failed: tell everybody who has a part in it, and begin anew."""

    def _tell(self, job: Job, item: Any) -> None:
        """In the loop's next turn, with everything else of this step."""
        self._outbox.append((job, item))

    def _run(self) -> None:
        assert self._started is not None
        assert self._loop is not None
        try:
            engine = self.engine = self._make_engine()
        except Exception as exc:  # noqa: BLE001 - the edge of the thread: the failure belongs to whoever waits for `start`
            self._loop.call_soon_threadsafe(self._started.set_exception, exc)
            return
        self._loop.call_soon_threadsafe(self._started.set_result, engine)
        while self._take_in():
            try:
                self._step()
            except Exception as exc:  # noqa: BLE001 - the edge of the thread: a bad step must not end all later ones
                self._abandon(exc)
            self._send_out()
        self._abandon(RuntimeError("the worker stops"))
        self._send_out()
        engine.close()

    def _take_in(self) -> bool:
        """What has come; waits while there is nothing to do. False: the end."""
        with self._wake:
            while not (self._busy or self._inbox or self._closing):
                self._wake.wait()
            came = [self._inbox.popleft() for _ in range(len(self._inbox))]
        for job in came:
            self._accept(job)
        return not self._closing

    def _send_out(self) -> None:
        if self._outbox and self._loop is not None:
            items, self._outbox = self._outbox, []
            try:
                self._loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass


def _deliver(items: list[tuple[Job, Any]]) -> None:
    for job, item in items:
        job.receive(item)
