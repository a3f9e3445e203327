"""Quota, journal and metrics of one request: opened before the work, closed once, before the last byte, on every way out."""

import logging
import time
from asyncio import CancelledError
from collections.abc import Callable
from types import TracebackType

from backends.wire import Usage
from gateway.contents import Contents
from gateway.errors import GatewayStopping, StoreUnavailable, explain
from gateway.exchange import Exchange
from gateway.journal import Journal
from gateway.journal_lines import begin_of, content_of, end_of
from gateway.metrics import Metrics
from gateway.outlet import Outlet
from policies.errors import QuotaExceeded
from policies.quotas import Measure, QuotaStore

log = logging.getLogger("chasqui")

BYTES_PER_TOKEN = 4
ADMISSION = {Measure.REQUESTS: 1, Measure.CONCURRENT: 1}
COUNTED = (Measure.TOKENS, Measure.COST)
"""What can only be held when the tokens of a request are known."""

GUESSED_MS = 1000
"""Of work on this machine, for a backend that has not worked yet."""

WORK_MEMORY = 0.2
"""Weight of the newest request in what a backend is expected to work on the next one."""


class Bookkeeping:
    """
    Args:
        work_ms: by backend of this machine, what a request keeps it busy for, as a decaying mean; outlives a configuration.
        clock: Unix seconds.
        elapsed: seconds, of the same clock that exchanges and meters use.
    """

    def __init__(
        self,
        quotas: QuotaStore,
        journal: Journal,
        metrics: Metrics,
        *,
        work_ms: dict[str, float] | None = None,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._quotas = quotas
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._elapsed = elapsed
        self._work_ms = work_ms if work_ms is not None else {}

    def of(self, exchange: Exchange, outlet: Outlet, asked: bytes = b"") -> "_Open":
        """Around everything that is done for a request: its books are closed on every way out, with what happened."""
        if exchange.caller is not None and exchange.caller.log_content:
            exchange.contents = Contents(asked)
        return _Open(self, exchange, outlet)

    async def admit(self, exchange: Exchange, foreseen: tuple[int, int] | None = None) -> None:
        """A request and a slot, before anything else is done.

        Args:
            foreseen: tokens of prompt and answer, at most; they are held in the same step if they fit, else `hold` has to.

        Raises:
            QuotaExceeded, QuotaStoreDown
        """
        assert exchange.caller is not None
        exchange.limits = exchange.caller.limits_for(exchange.model)
        amounts = self._amounts(exchange, *foreseen) if foreseen is not None else {}
        try:
            await self._quotas.reserve(exchange.id, exchange.limits, ADMISSION | amounts)
            exchange.held = amounts
        except QuotaExceeded as full:
            if full.measure not in amounts:
                raise
            await self._quotas.reserve(exchange.id, exchange.limits, ADMISSION)
        exchange.admitted = True

    async def hold(self, exchange: Exchange, prompt_tokens: int, answer_tokens: int) -> None:
        """At least what these tokens come to, before an engine is asked.

        Raises:
            QuotaExceeded, QuotaStoreDown
        """
        await self._raise(exchange, self._amounts(exchange, prompt_tokens, answer_tokens))

    async def hold_work(self, exchange: Exchange, backend: str) -> None:
        """What a backend of this machine is expected to work on it; the real time is settled.

        Raises:
            QuotaExceeded, QuotaStoreDown
        """
        assert exchange.caller is not None
        if exchange.caller.limits_any(Measure.COMPUTE):
            expected = max(1, round(self._work_ms.get(backend, GUESSED_MS)))
            least = min(
                (limit.amount for limit in exchange.limits if limit.measure is Measure.COMPUTE), default=expected
            )
            await self._raise(exchange, {Measure.COMPUTE: max(1, min(expected, least))})

    async def _raise(self, exchange: Exchange, amounts: dict[Measure, int]) -> None:
        held = exchange.held
        if any(amount > held.get(measure, 0) for measure, amount in amounts.items()):
            await self._quotas.raise_to(exchange.id, amounts)
            exchange.held = {**held, **{name: max(held.get(name, 0), amount) for name, amount in amounts.items()}}

    @staticmethod
    def counts_tokens(exchange: Exchange) -> bool:
        assert exchange.caller is not None
        return exchange.caller.limits_any(*COUNTED)

    def begin(self, exchange: Exchange) -> None:
        """Before each attempt, with what is held by then; of several lines for one id the last counts.

        Raises:
            StoreUnavailable
        """
        self._journal.begin(begin_of(exchange, self._clock()))
        exchange.began = True

    def first_byte(self, exchange: Exchange, now_s: float) -> None:
        """The head is about to go out; `now_s` is on the performance clock."""
        self.stand(exchange)
        seconds = exchange.first_byte_s = now_s - exchange.started_s
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

    def count_refusal(self, measure: Measure) -> None:
        self._metrics.refused(measure)

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
        now_s = self._elapsed()
        work_ms = round(exchange.meter.worked_s(now_s) * 1000)
        if work_ms and exchange.backend is not None:
            before = self._work_ms.get(exchange.backend, work_ms)
            self._work_ms[exchange.backend] = before + WORK_MEMORY * (work_ms - before)
        cost = self._cost(exchange)
        try:
            self._write_end(exchange, now_s, cost, work_ms)
        finally:
            used = {
                Measure.REQUESTS: int(exchange.admitted),
                Measure.TOKENS: exchange.usage.total_tokens,
                Measure.COST: cost,
                Measure.COMPUTE: work_ms,
            }
            exchange.standing = {**exchange.standing, **self._quotas.settle(exchange.id, used)}
            self._metrics.settled(exchange, cost=cost, work_ms=work_ms)

    def _write_end(self, exchange: Exchange, now_s: float, cost: int, work_ms: int) -> None:
        end = end_of(exchange, self._clock(), total_s=now_s - exchange.started_s, cost=cost, work_ms=work_ms)
        try:
            self._journal.end(end, content_of(exchange))
        except StoreUnavailable:
            if exchange.began:
                raise
            log.error("the journal has no line for the refused request %s", exchange.id)

    @staticmethod
    def _cost(exchange: Exchange) -> int:
        """Whoever got nothing pays nothing."""
        if exchange.price is None or exchange.price.free:
            return 0
        return exchange.price.of(exchange.usage) if exchange.outcome == "complete" or exchange.usage != Usage() else 0

    @staticmethod
    def _amounts(exchange: Exchange, prompt_tokens: int, answer_tokens: int) -> dict[Measure, int]:
        amounts = {Measure.TOKENS: prompt_tokens + answer_tokens}
        if exchange.price is not None and not exchange.price.free:
            amounts[Measure.COST] = exchange.price.at_most(prompt_tokens, answer_tokens)
        return amounts

    @staticmethod
    def _left_at_work(exchange: Exchange) -> bool:
        """The client left while an engine was at its prompt: that much was used."""
        return exchange.began and exchange.outcome == "client_left"

    @staticmethod
    def estimate(exchange: Exchange, answer_bytes: int) -> Usage:
        """For an engine that reports no usage: what was held for the prompt is not known better, the answer by its bytes."""
        return Usage(exchange.prompt_tokens, -(-answer_bytes // BYTES_PER_TOKEN))


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
                exchange.admitted = exchange.began  # refused for its tokens: it does not count as a request
                exchange.standing |= exc.standings
                self._books.count_refusal(exc.measure)
            told = explain(GatewayStopping() if isinstance(exc, CancelledError) else exc).meaning
            exchange.error, exchange.status = told.code, exchange.status or told.status
        self._books.close(exchange)
