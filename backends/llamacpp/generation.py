"""Many sequences through one context: continuous batching over a pool of cells that all of them share.

States of a sequence: waiting -> prompt (its prompt is decoded in pieces) -> generating -> ended. A sequence that the pool has no more
cells for goes back to waiting, with the tokens it has. Only the thread moves a sequence; anybody may set a job's `cancelled`, which
is seen at the next step. See DESIGN.md beside this file.

A step is one call of llama.cpp: the next token of every sequence that generates, then pieces of prompts, short ones while others
generate, so that their streams go on. What llama.cpp answers: 0 is good; 1, the cells are too few, nothing has changed: the
beginnings kept for later go first, then the newest sequence has to wait; anything else, what lies in the cells is not known any
more: everybody is told, and the cells are cleared.
"""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from backends.llamacpp.aside import deep
from backends.llamacpp.engine_thread import EngineThread
from backends.llamacpp.listener import Listener
from backends.llamacpp.prefixes import NOWHERE, Prefixes, Resident
from backends.llamacpp.sequences import Ask, Began, Counters, Ended, Generation, Running, Score, Step
from backends.llamacpp.speed import Speed

if TYPE_CHECKING:  # whoever imports that module loads llama.cpp
    from backends.llamacpp.engine import Engine

PROMPT_BESIDE_STREAMS = 128
"""Tokens of prompts in a step that others generate in."""

NO_CELLS = 1
"""`llama_decode`: too few cells; nothing has changed."""

MAX_WAIT_S = 600.0
"""That anybody is told to wait."""

KEPT_BEGINNINGS = 2
"""Sequences in the cells for each that is worked on: what was asked before is where the next prompt begins."""


class Generator(EngineThread[Generation]):
    """
    Args:
        slots: sequences that are worked on at the same time.
    """

    def __init__(self, make_engine: Callable[[], "Engine"], *, name: str, slots: int, max_waiting: int) -> None:
        super().__init__(make_engine, name=name, max_waiting=max_waiting)
        self.slots = slots
        self._at_most = slots
        """As many as there were cells for the last time that they ran out, until one of them has ended."""
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._prefixes = Prefixes()
        self._free: list[int] | None = None
        self.counters = Counters()
        self.speed = Speed()
        """Of all sequences together, tokens."""

    async def generate(self, ask: Ask) -> AsyncGenerator[Step, None]:
        """Steps of one sequence, the last with its finish reason. A slow reader gets several tokens in one step.

        Closing the generator cancels the sequence at its next token.

        Raises:
            BackendBusy
            InvalidRequest: the grammar, at any time.
            RuntimeError: the engine failed.
        """
        if ask.max_tokens == 0:
            yield Step("", 0, "length")
            return
        # Off the loop: a large schema takes tens of milliseconds, the first one of all a second.
        constraint = await deep(partial(self.engine.new_constraint, ask.grammar)) if ask.grammar is not None else None
        job = Generation(ask, constraint)
        self.submit(job)
        listener = Listener(ask, self.engine.piece)
        try:
            while True:
                step = listener.hear(await job.take())
                if step.tokens or step.finish or step.shared:
                    yield step
                if step.finish:
                    return
        finally:
            job.cancelled = True

    @property
    def waiting(self) -> int:
        return len(self._inbox) + len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def wait_s(self) -> float:
        usual = self.counters.generated_tokens / max(1, self.counters.finished)
        return min(MAX_WAIT_S, max(1.0, self.speed.seconds_for(self.waiting * usual, otherwise=float(self.waiting))))

    def _accept(self, job: Generation) -> None:
        self._waiting.append(Running(job, list(job.ask.prompt), None))

    @property
    def _busy(self) -> bool:
        return bool(self._waiting or self._running)

    def _step(self) -> None:
        self._drop_cancelled()
        self._admit()
        if self._running:
            self._decode(self._fill())

    def _drop_cancelled(self) -> None:
        for one in [one for one in self._running if one.job.cancelled]:
            self.counters.cancelled += 1
            self._end(one)
        if any(one.job.cancelled for one in self._waiting):
            for one in [one for one in self._waiting if one.job.cancelled]:
                self.counters.cancelled += 1
                self._waiting.remove(one)
                self._free_chain(one)

    def _admit(self) -> None:
        """In the order of their coming, as long as the pool holds what all of them may come to need."""
        pool = self.engine.info.context_tokens
        committed = sum(one.cells for one in self._running)
        while self._waiting and len(self._running) < self._at_most:
            one = self._waiting[0]
            if self._running and committed + one.cells > pool:
                return
            self._waiting.popleft()
            try:
                self._begin(one)
            except Exception as failure:  # noqa: BLE001 - of this one alone
                self._tell(one.job, failure)
                self._free_chain(one)
                continue
            committed += one.cells
            self._running.append(one)

    def _begin(self, one: Running) -> None:
        """Find cells to start from, and a number for the sequence."""
        if one.chain is None:
            one.chain = self.engine.new_chain(one.job.sampling)
        active = (resident_of(other) for other in self._running)
        source, shared = (
            NOWHERE if self.engine.recurrent else self._prefixes.best(one.tokens, one.job.ask.scope, active)
        )
        one.sequence = self._number(but=source)
        if source is not None:
            self.engine.share(source, one.sequence, shared)
        one.cached = shared
        if not one.begun:
            one.begun = True
            self.counters.shared_tokens += shared
            self._tell(one.job, Began(shared))

    def _number(self, *, but: int | None) -> int:
        """Of an empty sequence. There are more numbers than slots, so there is one, or a beginning that nobody has used for long."""
        if self._free is None:
            self._free = list(range(self.engine.sequences))
        if self._free:
            return self._free.pop()
        oldest = self._prefixes.oldest(but=but)
        assert oldest is not None
        self._prefixes.take(oldest)
        self.engine.forget(oldest)
        return oldest

    def _fill(self) -> list[tuple[Running, int, int | None]]:
        """(sequence, how many of its tokens are in the batch, the row to sample behind, where it is through with them)"""
        batch = self.engine.batch
        parts: list[tuple[Running, int, int | None]] = []
        batch.clear()
        generating = [one for one in self._running if one.pending == 1]
        prompts = [one for one in self._running if one.pending > 1]
        budget = PROMPT_BESIDE_STREAMS if generating else batch.size
        for one in generating:
            row = batch.add(one.tokens[-1:], position=one.cached, sequence=one.sequence, logits="last")
            parts.append((one, 1, row))
        for one in prompts:
            size = min(one.pending, budget, batch.room)
            if size <= 0:
                break
            budget -= size
            through = size == one.pending
            tokens = one.tokens[one.cached : one.cached + size]
            row = batch.add(tokens, position=one.cached, sequence=one.sequence, logits="last" if through else "none")
            parts.append((one, size, row if through else None))
        return parts

    def _decode(self, parts: list[tuple[Running, int, int | None]]) -> None:
        began_s, before = time.perf_counter(), self.counters.generated_tokens
        code = self.engine.decode()
        if code == NO_CELLS:
            self._make_room()
            return
        if code != 0:
            raise RuntimeError(f"llama_decode gave {code} for {self.engine.batch.rows} rows")
        self.counters.steps += 1
        for one, size, row in parts:
            if one.produced == 0:
                self.counters.prompt_tokens += size
            one.cached += size
            if row is not None:
                self._sample(one, row)
        seconds = time.perf_counter() - began_s
        self.counters.busy_s += seconds
        if produced := self.counters.generated_tokens - before:
            self.speed.saw(produced, seconds)

    def _sample(self, one: Running, row: int) -> None:
        constraint, top = one.job.constraint, one.job.ask.top_logprobs
        try:
            if constraint is not None:
                constraint.narrow(self.engine.logits(row))
            token = self.engine.sample(one.chain, row)
            if self.engine.ends(token):
                self._finish(one, "stop")
                return
            complete = constraint is not None and constraint.take(token)
            said = token if top is None else self._score(row, token, top)
        except Exception as failure:  # noqa: BLE001 - of its grammar, mostly; nobody else's business
            self._tell(one.job, failure)
            self._end(one)
            return
        one.tokens.append(token)
        one.produced += 1
        self.counters.generated_tokens += 1
        self._tell(one.job, said)
        if complete or one.produced >= one.job.ask.max_tokens:
            self._finish(one, "stop" if complete else "length")

    def _score(self, row: int, token: int, top: int) -> Score:
        logprobs = log_softmax(self.engine.logits(row))
        top = min(top, len(logprobs))
        likely = np.argpartition(logprobs, -top)[-top:] if top else np.empty(0, np.intp)
        likely = likely[np.argsort(-logprobs[likely])]
        return Score(
            token,
            float(logprobs[token]),
            tuple((int(one), float(logprobs[one])) for one in likely if np.isfinite(logprobs[one])),
        )

    def _finish(self, one: Running, finish: str) -> None:
        self.counters.finished += 1
        self._tell(one.job, Ended(finish))
        self._end(one)

    def _end(self, one: Running) -> None:
        """Its cells stay, as a beginning for others."""
        self._running.remove(one)
        self._at_most = self.slots
        self._free_chain(one)
        self._prefixes.keep(resident_of(one))

    def _make_room(self) -> None:
        """Beginnings first, the longest unused one; then the newest sequence goes back to waiting."""
        oldest = self._prefixes.oldest()
        if oldest is not None:
            self._prefixes.take(oldest)
            self._empty(oldest)
            return
        if len(self._running) == 1:
            one = self._running[0]
            self._tell(one.job, RuntimeError("the pool of cells is too small for this request"))
            self._running.remove(one)
            self._at_most = self.slots
            self._free_chain(one)
            self._empty(one.sequence)
            return
        newest = self._running.pop()
        self._at_most = len(self._running)
        self.counters.preempted += 1
        self._empty(newest.sequence)
        newest.cached, newest.sequence = 0, -1
        self._waiting.appendleft(newest)

    def _empty(self, sequence: int) -> None:
        self.engine.forget(sequence)
        assert self._free is not None
        self._free.append(sequence)

    def _free_chain(self, one: Running) -> None:
        if one.chain is not None:
            self.engine.free_chain(one.chain)
            one.chain = None

    def _abandon(self, failure: Exception) -> None:
        for one in (*self._running, *self._waiting):
            self._tell(one.job, failure)
            self._free_chain(one)
        self._running, self._waiting, self._at_most = [], deque(), self.slots
        self._prefixes.clear()
        self.engine.forget_all()
        self._free = None


def resident_of(one: Running) -> Resident:
    ask = one.job.ask
    return Resident(one.sequence, ask.scope, np.asarray(one.tokens[: one.cached], np.int32), ask.public_tokens)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max()
    scores: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(dtype=np.float64))
    return scores
