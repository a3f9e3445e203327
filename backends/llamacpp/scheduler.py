"""The thread that owns the engine, and the way there from asyncio.

States of a job: waiting (in the queue) -> running (on the thread) -> ended. Only the thread moves a job forward; anybody
may set `cancelled`, which a waiting job notices when its turn comes and a running one at its next step. One job runs at
a time: continuous batching replaces `_run` and nothing else, because callers only see `generate` and `embed`.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.errors import BackendBusy
from backends.llamacpp.engine import Engine
from backends.llamacpp.sampling import Sampling
from backends.llamacpp.transcript import Transcript


class Step(NamedTuple):
    """What one or more tokens added to an answer."""

    text: str
    tokens: int
    finish: str | None = None
    """`stop` or `length` on the last step of a sequence."""


class _Job:
    """One piece of work for the thread, and the mailbox for what comes of it."""

    def __init__(self, work: Callable[["_Job"], None]) -> None:
        self.work = work
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._box: deque[Step | NDArray[np.float32] | Exception | None] = deque()
        self._filled = asyncio.Event()

    def put(self, item: Step | NDArray[np.float32] | Exception | None) -> None:
        """From the thread. None says that nothing follows."""
        self._box.append(item)
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancelled.set()

    async def take(self) -> list[Step | NDArray[np.float32] | Exception | None]:
        """Everything that has come; waits for at least one."""
        await self._filled.wait()
        self._filled.clear()
        items = [self._box.popleft() for _ in range(len(self._box))]
        return items


class Scheduler:
    """
    Args:
        make_engine: called on the thread, so that one thread alone ever sees the engine's context.
        max_waiting: jobs that may wait; one more is `BackendBusy`.
    """

    def __init__(self, make_engine: Callable[[], Engine], *, name: str, max_waiting: int = 64) -> None:
        self._make_engine = make_engine
        self._name = name
        self._max_waiting = max_waiting
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._running: _Job | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._started: asyncio.Future[Engine] | None = None
        self.engine: Engine

    async def start(self) -> Engine:
        """
        Raises:
            ModelFileUnusable
        """
        self._started = asyncio.get_running_loop().create_future()
        self._thread.start()
        self.engine = await self._started
        return self.engine

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, *, stops: Sequence[str], max_tokens: int
    ) -> AsyncGenerator[Step, None]:
        """Steps of one sequence, the last with its finish reason. A slow reader gets several tokens in one step.

        Closing the generator cancels the sequence at its next token.
        """

        def work(job: _Job) -> None:
            transcript, produced = Transcript(stops), 0
            for token in self.engine.generate(prompt, sampling, max_tokens=max_tokens, cancelled=job.cancelled.is_set):
                produced += 1
                job.put(Step(transcript.feed(self.engine.piece(token)), 1))
                if transcript.stopped:
                    break
            finish = "stop" if transcript.stopped or produced < max_tokens else "length"
            job.put(Step(transcript.finish(), 0, finish))

        job = self._submit(work)
        try:
            async for step in self._steps(job):
                yield step
        finally:
            job.cancelled.set()

    async def _steps(self, job: _Job) -> AsyncGenerator[Step, None]:
        while True:
            text, tokens = "", 0
            for item in await job.take():
                match item:
                    case Step():
                        text, tokens = text + item.text, tokens + item.tokens
                        if item.finish:
                            yield Step(text, tokens, item.finish)
                            text, tokens = "", 0  # the None that ends the job may be in this very batch
                    case Exception():
                        raise item
                    case None:
                        return
            if text or tokens:
                yield Step(text, tokens)
            # after the last step comes None; it may be in the box already or on its way

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """One unit vector per input. One text per call of the engine: small batches win on a CPU."""

        def work(job: _Job) -> None:
            for tokens in inputs:
                if job.cancelled.is_set():
                    return
                job.put(self.engine.embed(tokens))

        job = self._submit(work)
        vectors: list[NDArray[np.float32]] = []
        try:
            while True:
                for item in await job.take():
                    if isinstance(item, Exception):
                        raise item
                    if item is None:
                        return vectors
                    assert isinstance(item, np.ndarray)
                    vectors.append(item)
        finally:
            job.cancelled.set()

    def close(self) -> None:
        """End the thread after the step it is in; running and waiting jobs are cancelled."""
        with self._wake:
            self._closing = True
            for job in (*self._jobs, self._running):
                if job is not None:
                    job.cancelled.set()
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _submit(self, work: Callable[[_Job], None]) -> _Job:
        job = _Job(work)
        with self._wake:
            if len(self._jobs) >= self._max_waiting:
                raise BackendBusy(self._name, retry_after_s=float(len(self._jobs)))
            self._jobs.append(job)
            self._wake.notify()
        return job

    def _run(self) -> None:
        assert self._started is not None
        loop = self._started.get_loop()
        try:
            engine = self._make_engine()
        except Exception as exc:  # noqa: BLE001 - the edge of the thread: the failure belongs to whoever waits for `start`
            loop.call_soon_threadsafe(self._started.set_exception, exc)
            return
        loop.call_soon_threadsafe(self._started.set_result, engine)
        while (job := self._next()) is not None:
            try:
                if not job.cancelled.is_set():
                    job.work(job)
            except Exception as exc:  # noqa: BLE001 - the edge of the thread: one bad job must not end the others
                job.put(exc)
            finally:
                job.put(None)
                self._running = None
        engine.close()

    def _next(self) -> _Job | None:
        with self._wake:
            while not self._jobs and not self._closing:
                self._wake.wait()
            if self._closing:
                return None
            self._running = self._jobs.popleft()
            return self._running
