"""Texts of many requests through one embedding context, in turn: a request with a thousand texts holds nobody up for longer than one.

Short texts share a call of llama.cpp, up to a budget of tokens: on a CPU about four of thirty tokens are fastest, and more are slower
again (`make bench-engine`). A text above the budget travels alone.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backends.llamacpp.engine_thread import EngineThread, Job
from backends.llamacpp.speed import Speed

if TYPE_CHECKING:  # whoever imports that module loads llama.cpp
    from backends.llamacpp.engine import Engine

Vector = NDArray[np.float32]


BATCH_TOKENS = 128
"""Of a call that several texts share."""

TOKENS_A_TEXT = 8
"""The shortest texts that a call is full of at its budget: so many sequences does a context need."""

MOST_TEXTS_A_CALL = 256
"""llama.cpp's limit of sequences."""


def texts_a_call(batch_tokens: int) -> int:
    return max(1, min(MOST_TEXTS_A_CALL, batch_tokens // TOKENS_A_TEXT))


@dataclass
class Counters:
    """Since the start; read by others than the thread that counts."""

    steps: int = 0
    texts: int = 0
    tokens: int = 0
    cancelled: int = 0
    busy_s: float = 0.0
    """That llama.cpp was at work."""


class Texts(Job):
    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.inputs = inputs


@dataclass(slots=True, eq=False)
class _Turn:
    job: Texts
    next: int = 0


class EmbeddingQueue(EngineThread[Texts]):
    """
    Args:
        batch_tokens: of a call that several texts share.
    """

    def __init__(
        self, make_engine: Callable[[], "Engine"], *, name: str, max_waiting: int, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        super().__init__(make_engine, name=name, max_waiting=max_waiting)
        self._batch_tokens = batch_tokens
        self._turns: deque[_Turn] = deque()
        self._in_call = 0
        self.counters = Counters()
        self.speed = Speed()
        """Tokens."""

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[Vector]:
        """One unit vector per input, in their order.

        Raises:
            BackendBusy, RuntimeError: the engine failed.
        """
        job = Texts(inputs)
        self.submit(job)
        vectors: dict[int, Vector] = {}
        try:
            while len(vectors) < len(inputs):
                for item in await job.take():
                    if isinstance(item, Exception):
                        raise item
                    place, vector = item
                    vectors[place] = vector
            return [vectors[place] for place in range(len(inputs))]
        finally:
            job.cancelled = True

    @property
    def waiting(self) -> int:
        return len(self._inbox) + len(self._turns)

    @property
    def running(self) -> int:
        """Texts in the call that llama.cpp is at work on."""
        return self._in_call

    def wait_s(self) -> float:
        tokens = sum(len(text) for turn in list(self._turns) for text in turn.job.inputs[turn.next :])
        return min(600.0, max(1.0, self.speed.seconds_for(tokens, otherwise=float(self.waiting))))

    def _accept(self, job: Texts) -> None:
        self._turns.append(_Turn(job))

    @property
    def _busy(self) -> bool:
        return bool(self._turns)

    def _step(self) -> None:
        parts = self._next_texts()
        if not parts:
            return
        texts = [turn.job.inputs[place] for turn, place in parts]
        began_s, self._in_call = time.perf_counter(), len(texts)
        try:
            vectors = self.engine.embed(texts)
        except Exception as failure:  # noqa: BLE001 - told to everybody who has a part in this call, and to nobody else
            for turn in dict.fromkeys(turn for turn, _ in parts):
                self._tell(turn.job, failure)
                turn.job.cancelled = True
            return
        finally:
            self._in_call = 0
        self._count(texts, time.perf_counter() - began_s)
        for (turn, place), vector in zip(parts, vectors, strict=True):
            self._tell(turn.job, (place, vector))

    def _count(self, texts: Sequence[Sequence[int]], seconds: float) -> None:
        tokens = sum(map(len, texts))
        self.counters.steps += 1
        self.counters.texts += len(texts)
        self.counters.tokens += tokens
        self.counters.busy_s += seconds
        self.speed.saw(tokens, seconds)

    def _next_texts(self) -> list[tuple[_Turn, int]]:
        """One of each request in turn, as long as they fit into a call."""
        parts: list[tuple[_Turn, int]] = []
        tokens, most = 0, min(self._batch_tokens, self.engine.batch_tokens)
        while self._turns and len(parts) < self.engine.sequences:
            turn = self._turns[0]
            if turn.job.cancelled:
                self.counters.cancelled += 1
                self._turns.popleft()
                continue
            size = len(turn.job.inputs[turn.next])
            if parts and tokens + size > most:
                break
            self._turns.popleft()
            parts.append((turn, turn.next))
            tokens += size
            turn.next += 1
            if turn.next < len(turn.job.inputs):
                self._turns.append(turn)
        return parts

    def _abandon(self, failure: Exception) -> None:
        for turn in self._turns:
            self._tell(turn.job, failure)
        self._turns.clear()
