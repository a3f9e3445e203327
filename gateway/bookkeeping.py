"""Quota, journal and metrics of one request: opened before the work, closed once, before the last byte, on every way out."""

import time
from asyncio import CancelledError
from collections.abc import Callable
from types import TracebackType

from backends.wire import Usage
from gateway.errors import GatewayStopping, explain
from gateway.exchange import Exchange
from gateway.journal import Begin, End, Journal
from gateway.metrics import Metrics
from gateway.outlet import Outlet
from policies.errors import QuotaExceeded
from policies.quotas import Measure, QuotaStore

BYTES_PER_TOKEN = 4
ADMISSION = {Measure.REQUESTS: 1, Measure.CONCURRENT: 1}
LEFT = 499
"""nginx's status for a client that left before its answer."""


class Bookkeeping:
    def __init__(
        self, quotas: QuotaStore, journal: Journal, metrics: Metrics, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._quotas = quotas
        self._journal = journal
        self._metrics = metrics
        self._clock = clock

    def of(self, exchange: Exchange, outlet: Outlet) -> "_Open":
        """Around everything that is done for a request: its books are closed on every way out, with what happened."""
        return _Open(self, exchange, outlet)

    async def admit(self, exchange: Exchange) -> None:
        """A request and a slot, before anything else is done.

        Raises:
            QuotaExceeded
        """
        assert exchange.caller is not None
        await self._quotas.reserve(exchange.id, exchange.caller.limits, ADMISSION)

    async def hold(self, exchange: Exchange, tokens: int) -> None:
        """At least this many tokens, before an engine is asked.

        Raises:
            QuotaExceeded
        """
        await self._quotas.raise_to(exchange.id, tokens)
        exchange.held_tokens = max(exchange.held_tokens, tokens)

    @staticmethod
    def counts_tokens(exchange: Exchange) -> bool:
        assert exchange.caller is not None
        return exchange.caller.limits_tokens

    def begin(self, exchange: Exchange) -> None:
        """Before each attempt, with what is held by then; of several lines for one id the last counts.

        Raises:
            StoreUnavailable
        """
        assert exchange.caller is not None
        self._journal.begin(
            Begin(exchange.id, exchange.caller.key_id, exchange.model, exchange.held_tokens, self._clock())
        )
        exchange.began = True

    def first_byte(self, exchange: Exchange, now_s: float) -> None:
        """The head is about to go out; `now_s` is on the performance clock."""
        self.stand(exchange)
        seconds = now_s - exchange.started_s
        exchange.overhead_s = seconds - exchange.waited_s
        self._metrics.first_byte(
            operation=exchange.operation,
            model=exchange.entry,
            stream=exchange.stream,
            seconds=seconds,
            overhead_s=exchange.overhead_s,
        )

    def stand(self, exchange: Exchange) -> None:
        """Let the exchange know where its limits stand, for the answer's head."""
        if not exchange.settled:
            exchange.standing = self._quotas.standing(exchange.id)

    def count_cache(self, *, hits: int, misses: int) -> None:
        self._metrics.cache(hits=hits, misses=misses)

    def close(self, exchange: Exchange) -> None:
        """Write the journal's `end`, then settle. Does nothing the second time.

        Raises:
            StoreUnavailable: the journal took nothing; the quota is settled all the same.
        """
        if exchange.settled:
            return
        exchange.settled = True
        if exchange.usage == Usage() and (exchange.text_bytes or self._left_at_work(exchange)):
            exchange.usage = self.estimate(exchange, exchange.text_bytes)
        try:
            if exchange.began:
                self._journal.end(self._end(exchange))
        finally:
            standing = self._quotas.settle(exchange.id, exchange.usage.total_tokens)
            exchange.standing = {**exchange.standing, **standing}

    @staticmethod
    def _left_at_work(exchange: Exchange) -> bool:
        """The client left while an engine was at its prompt: that much was used."""
        return exchange.began and exchange.outcome == "client_left"

    @staticmethod
    def estimate(exchange: Exchange, answer_bytes: int) -> Usage:
        """For an engine that reports no usage: what was held for the prompt is not known better, the answer by its bytes."""
        return Usage(exchange.prompt_tokens, -(-answer_bytes // BYTES_PER_TOKEN))

    def _end(self, exchange: Exchange) -> End:
        assert exchange.caller is not None
        return End(
            id=exchange.id,
            key=exchange.caller.key_id,
            model=exchange.model,
            backend=exchange.backend,
            attempts=exchange.attempts,
            prompt_tokens=exchange.usage.prompt_tokens,
            completion_tokens=exchange.usage.completion_tokens,
            status=exchange.status or (LEFT if exchange.outcome == "client_left" else 200),
            outcome=exchange.outcome,
            total_ms=int((time.perf_counter() - exchange.started_s) * 1000),
            at=self._clock(),
        )


class _Open:
    """The books of one request while it is worked on."""

    def __init__(self, books: Bookkeeping, exchange: Exchange, outlet: Outlet) -> None:
        self._books = books
        self._exchange = exchange
        self._outlet = outlet

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        exchange = self._exchange
        if isinstance(exc, CancelledError) and self._outlet.gone:
            exchange.outcome = "client_left"
        elif exc is not None:
            if isinstance(exc, QuotaExceeded):
                exchange.standing |= exc.standings
            told = explain(GatewayStopping() if isinstance(exc, CancelledError) else exc).meaning
            exchange.error, exchange.status = told.code, exchange.status or told.status
        self._books.close(exchange)
