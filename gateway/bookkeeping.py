"""Quota, journal and metrics of one request: opened before the work, closed once, before the last byte, on every way out."""

import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from backends.wire import Usage
from gateway.errors import explain
from gateway.exchange import Exchange
from gateway.journal import Begin, End, Journal
from gateway.metrics import Metrics
from policies.errors import QuotaExceeded
from policies.quotas import Measure, QuotaStore

BYTES_PER_TOKEN = 4
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

    @contextmanager
    def of(self, exchange: Exchange) -> Iterator[None]:
        """Around everything that is done for a request: its books are closed on every way out, with what happened."""
        try:
            yield
        except (GeneratorExit, CancelledError):
            exchange.outcome = "client_left"
            raise
        except BaseException as exc:
            if isinstance(exc, QuotaExceeded):
                exchange.standing |= exc.standings
            told = explain(exc).meaning
            exchange.error, exchange.status = told.code, told.status
            raise
        finally:
            self.close(exchange)

    async def admit(self, exchange: Exchange) -> None:
        """A request and a slot, before anything else is done.

        Raises:
            QuotaExceeded
        """
        assert exchange.caller is not None
        amounts = {Measure.REQUESTS: 1, Measure.CONCURRENT: 1}
        exchange.standing = await self._quotas.reserve(exchange.id, exchange.caller.limits, amounts)

    async def hold(self, exchange: Exchange, tokens: int) -> None:
        """At least this many tokens, before an engine is asked.

        Raises:
            QuotaExceeded
        """
        exchange.standing = await self._quotas.raise_to(exchange.id, tokens)
        exchange.held_tokens = max(exchange.held_tokens, tokens)

    @staticmethod
    def counts_tokens(exchange: Exchange) -> bool:
        assert exchange.caller is not None
        return any(limit.measure is Measure.TOKENS for limit in exchange.caller.limits)

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

    def first_byte(self, exchange: Exchange) -> None:
        seconds = exchange.overhead_s + exchange.waited_s
        self._metrics.first_byte(
            operation=exchange.operation,
            model=exchange.model,
            stream=exchange.stream,
            seconds=seconds,
            overhead_s=exchange.overhead_s,
        )

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
            exchange.standing |= self._quotas.settle(exchange.id, exchange.usage.total_tokens)

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
