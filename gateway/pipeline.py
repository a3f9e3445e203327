"""The story of one request that generates, in order, and nothing else.

Whatever ends it early (a refusal, a failure, a client that left, a gateway that stops) passes through the same books, which
settle. Failures before the first byte are raised; later ones end the stream with one error event.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

import msgspec

from backends import sse
from backends.base import Answer, Backend, Call, Event
from backends.errors import BackendError, UpstreamBroken
from backends.wire import Body
from gateway.attempts import Attempts, Question
from gateway.bookkeeping import Bookkeeping
from gateway.errors import GatewayStopping, StoreUnavailable, explain
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.targets import Targets

STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-store"}


class Pipeline:
    def __init__(
        self,
        targets: Targets,
        attempts: Attempts,
        books: Bookkeeping,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._targets = targets
        self._attempts = attempts
        self._books = books
        self._clock = clock

    async def answer(self, exchange: Exchange, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, RetrievalError, BackendError, GatewayError: before the first byte, nowhere else.
        """
        assert exchange.caller is not None
        exchange.model = body.require("model", str)
        exchange.stream = body.read("stream", bool, False)
        target = self._targets.resolve(exchange.model, exchange.caller)
        with self._books.of(exchange, outlet):
            await self._books.admit(exchange)
            question = await self._attempts.ask(exchange, target, body)
            await (self._stream if exchange.stream else self._whole)(exchange, question, outlet)

    async def _whole(self, exchange: Exchange, question: Question, outlet: Outlet) -> None:
        answer = await self._answered(exchange, question)
        exchange.usage = answer.usage or self._books.estimate(exchange, len(answer.body))
        exchange.outcome = "complete"
        self._books.close(exchange)
        self._books.first_byte(exchange, self._clock())
        await outlet.whole(answer.body, {"content-type": "application/json", **answer.headers})

    async def _answered(self, exchange: Exchange, question: Question) -> Answer:
        """The first whole answer of any attempt."""
        while (attempt := await self._next_attempt(exchange, question)) is not None:
            backend, call = attempt
            waiting_since = self._clock()
            try:
                return await backend.complete(call)
            except BackendError as failure:
                question.tries.failed(failure)
            finally:
                exchange.waited_s += self._clock() - waiting_since
        raise question.tries.failure

    async def _stream(self, exchange: Exchange, question: Question, outlet: Outlet) -> None:
        first, events = await self._first(exchange, question)
        try:
            self._books.first_byte(exchange, self._clock())
            await outlet.start(STREAM_HEADERS)
            await self._pass_on(exchange, first, outlet)
            async for event in events:
                await self._pass_on(exchange, event, outlet)
        except (BackendError, StoreUnavailable) as failure:
            await self._broken(exchange, failure, outlet)
        except asyncio.CancelledError:
            if not outlet.gone:
                await self._broken(exchange, GatewayStopping(), outlet)
            raise
        finally:
            await events.aclose()

    async def _pass_on(self, exchange: Exchange, event: Event, outlet: Outlet) -> None:
        exchange.usage = event.usage or exchange.usage
        exchange.text_bytes += event.text_bytes
        if event.last:
            exchange.outcome = "complete"
            self._books.close(exchange)
        if event.raw:
            await outlet.piece(event.raw, last=event.last)

    async def _first(self, exchange: Exchange, question: Question) -> tuple[Event, AsyncGenerator[Event, None]]:
        """The first attempt that yields an event; the attempts before it are closed."""
        while (attempt := await self._next_attempt(exchange, question)) is not None:
            backend, call = attempt
            waiting_since = self._clock()
            events = backend.stream(call)
            try:
                return await anext(events), events
            except StopAsyncIteration:
                question.tries.failed(UpstreamBroken(backend.name, "an empty stream"))
            except BackendError as failure:
                question.tries.failed(failure)
            finally:
                exchange.waited_s += self._clock() - waiting_since
        raise question.tries.failure

    async def _next_attempt(self, exchange: Exchange, question: Question) -> tuple[Backend, Call] | None:
        """The next station, prepared now that its turn has come; None: nobody is left to ask."""
        while True:
            waiting_since = self._clock()
            station = await question.tries.next()
            exchange.waited_s += self._clock() - waiting_since
            if station is None:
                return None
            exchange.attempts += 1
            exchange.backend, exchange.backend_model = station.backend, station.model
            try:
                return await self._attempts.prepare(exchange, question, station)
            except BackendError as failure:
                question.tries.failed(failure)

    async def _broken(self, exchange: Exchange, failure: Exception, outlet: Outlet) -> None:
        """After the first byte: one error event, and the stream is over. It never looks complete."""
        if outlet.ended:
            return
        told = explain(failure)
        exchange.outcome, exchange.error = "broken", told.meaning.code
        self._books.close(exchange)
        await outlet.piece(sse.encode(msgspec.json.encode(told.body)), last=True)
