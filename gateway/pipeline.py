"""The story of one request that generates, in order, and nothing else.

Whatever ends it early (a refusal, a failure, a client that left, a gateway that stops) passes through the same books, which
settle. Failures before the first byte are raised; later ones end the stream with one error event.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from backends import sse
from backends.base import Answer, Backend, Call, Event
from backends.errors import BackendError, UpstreamBroken
from backends.wire import Body
from gateway.answer_desk import MAX_RECORDED_BYTES, AnswerDesk
from gateway.attempts import Attempts, Question
from gateway.attribution import attribute
from gateway.bookkeeping import Bookkeeping
from gateway.errors import GatewayStopping, StoreUnavailable, explain
from gateway.exchange import Cites, Exchange
from gateway.outlet import Outlet
from gateway.race import race
from gateway.targets import Targets
from gateway.tries import Tries
from policies.errors import QuotaExceeded
from policies.routing import Station

T = TypeVar("T", Answer, "Started")
Ask = Callable[[Backend, Call], Awaitable[T]]

PING = b": ping\n\n"
STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store"}


class Started(NamedTuple):
    """A stream that has begun."""

    first: Event
    rest: AsyncGenerator[Event, None]


@dataclass(frozen=True, slots=True)
class Won(Generic[T]):
    """The attempt that has answered."""

    station: Station
    citing: Cites | None
    result: T


class Pipeline:
    """
    Args:
        keepalive_s: between pings to clients who wait for the first event of a stream; False: they are not pinged.
    """

    def __init__(
        self,
        targets: Targets,
        attempts: Attempts,
        books: Bookkeeping,
        desk: AnswerDesk,
        *,
        keepalive_s: float | Literal[False] = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._targets = targets
        self._attempts = attempts
        self._books = books
        self._desk = desk
        self._keepalive_s = keepalive_s
        self._clock = clock

    async def answer(self, exchange: Exchange, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, RetrievalError, BackendError, GatewayError: before the first byte, nowhere else.
        """
        assert exchange.caller is not None
        exchange.model = body.require("model", str)
        exchange.stream = body.read("stream", bool, False)
        attribute(exchange, body)
        with self._books.of(exchange, outlet, body.raw):
            target = self._targets.resolve(exchange.model, exchange.caller)
            exchange.entry, exchange.price = target.settings.name, target.price
            await self._books.admit(exchange, self._attempts.foreseen(exchange, target, body))
            question = await self._attempts.ask(exchange, target, body)
            known = await self._desk.find(exchange, question)
            if known is not None:
                await self._again(exchange, known, outlet)
                return
            await (self._stream if exchange.stream else self._whole)(exchange, question, outlet)

    async def _again(self, exchange: Exchange, answer: bytes, outlet: Outlet) -> None:
        """An answer as it went out before. It counts as a request, and nothing else."""
        exchange.outcome = "complete"
        exchange.keep(answer)
        self._books.close(exchange)
        self._books.first_byte(exchange, self._clock())
        if not exchange.stream:
            await outlet.whole(answer, {"content-type": "application/json"})
            return
        await outlet.start(STREAM_HEADERS)
        await outlet.piece(answer, last=True)

    async def _whole(self, exchange: Exchange, question: Question, outlet: Outlet) -> None:
        answer = await self._asked(exchange, question, _complete)
        exchange.usage = answer.usage or self._books.estimate(exchange, len(answer.body))
        exchange.outcome = "complete"
        body = exchange.citing.whole(answer.body) if exchange.citing is not None else answer.body
        exchange.keep(body)
        self._books.close(exchange)
        self._books.first_byte(exchange, self._clock())
        self._desk.keep(exchange, question, body)
        await outlet.whole(body, {"content-type": "application/json", **answer.headers})

    async def _stream(self, exchange: Exchange, question: Question, outlet: Outlet) -> None:
        started: Started | None = None
        try:
            started = await self._started(exchange, question, outlet)
            self._books.first_byte(exchange, self._clock())
            if not exchange.head_sent:
                await outlet.start(STREAM_HEADERS)
            await self._pass_on(exchange, started.first, outlet)
            async for event in started.rest:
                await self._pass_on(exchange, event, outlet)
            self._desk.keep(exchange, question, bytes(exchange.recorded or b""))
        except (BackendError, StoreUnavailable, QuotaExceeded) as failure:
            if not exchange.head_sent:
                raise
            await self._broken(exchange, failure, outlet)
        except asyncio.CancelledError:
            if exchange.head_sent and not outlet.gone:
                await self._broken(exchange, GatewayStopping(), outlet)
            raise
        finally:
            if started is not None:
                await started.rest.aclose()

    async def _started(self, exchange: Exchange, question: Question, outlet: Outlet) -> Started:
        """The first attempt that yields an event. Whoever waits for it is pinged, where the operator wants that."""
        if not self._keepalive_s:
            return await self._asked(exchange, question, _start)
        task = asyncio.create_task(self._asked(exchange, question, _start))
        try:
            while not (await asyncio.wait([task], timeout=self._keepalive_s))[0]:
                if not exchange.head_sent:
                    self._books.stand(exchange)
                    await outlet.start(STREAM_HEADERS)
                await outlet.piece(PING, last=False)
            return task.result()
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise

    async def _pass_on(self, exchange: Exchange, event: Event, outlet: Outlet) -> None:
        if exchange.citing is not None:
            event = event._replace(raw=exchange.citing.event(event.raw))
        exchange.usage = event.usage or exchange.usage
        exchange.text_bytes += event.text_bytes
        exchange.keep(event.raw)
        if exchange.answer_key is not None:
            self._record(exchange, event.raw)
        if event.last:
            exchange.outcome = "complete"
            self._books.close(exchange)
        if event.raw:
            await outlet.piece(event.raw, last=event.last)

    @staticmethod
    def _record(exchange: Exchange, raw: bytes) -> None:
        """One that grows beyond all answers is not recorded any more."""
        exchange.recorded = exchange.recorded if exchange.recorded is not None else bytearray()
        exchange.recorded += raw
        if len(exchange.recorded) > MAX_RECORDED_BYTES:
            exchange.recorded = exchange.answer_key = None

    async def _asked(self, exchange: Exchange, question: Question, ask: Ask[T]) -> T:
        """What the first attempt that works gives; of two at a time, where the model is hedged."""
        hedge_after_s = question.target.settings.hedge_after_s
        if not hedge_after_s:
            won = await self._along(exchange, question, question.tries, ask)
            exchange.citing = won.citing
            return won.result
        began_s, waited_s = self._clock(), exchange.waited_s
        won = await race(
            lambda: self._along(exchange, question, question.tries, ask),
            lambda: self._along(exchange, question, question.tries.split(), ask),
            after_s=hedge_after_s,
            discard=_discard,
        )
        exchange.waited_s = waited_s + self._clock() - began_s
        exchange.backend, exchange.backend_model, exchange.citing = won.station.backend, won.station.model, won.citing
        return won.result

    async def _along(self, exchange: Exchange, question: Question, tries: Tries, ask: Ask[T]) -> "Won[T]":
        """Ask one station after the other, until one gives an answer."""
        while True:
            waiting_since = self._clock()
            station = await tries.next()
            exchange.waited_s += self._clock() - waiting_since
            if station is None:
                raise tries.failure
            exchange.attempts += 1
            exchange.backend, exchange.backend_model = station.backend, station.model
            try:
                backend, call, citing = await self._attempts.prepare(exchange, question, station)
                waiting_since = self._clock()
                try:
                    return Won(station, citing, await ask(backend, call))
                finally:
                    exchange.waited_s += self._clock() - waiting_since
            except BackendError as failure:
                tries.failed(failure)

    async def _broken(self, exchange: Exchange, failure: Exception, outlet: Outlet) -> None:
        """After the first byte: one error event, and the stream is over. It never looks complete."""
        if outlet.ended:
            return
        told = explain(failure)
        exchange.outcome, exchange.error = "broken", told.meaning.code
        self._books.close(exchange)
        await outlet.piece(sse.encode(msgspec.json.encode(told.body)), last=True)


async def _complete(backend: Backend, call: Call) -> Answer:
    return await backend.complete(call)


async def _start(backend: Backend, call: Call) -> Started:
    events = backend.stream(call)
    try:
        return Started(await anext(events), events)
    except StopAsyncIteration:
        raise UpstreamBroken(backend.name, "an empty stream") from None


async def _discard(late: "Won[Answer] | Won[Started]") -> None:
    """A hedged answer that nobody needs any more."""
    if isinstance(late.result, Started):
        await late.result.rest.aclose()
