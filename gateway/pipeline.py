"""The story of one request that generates, in order, and nothing else.

One generator holds a whole request: first a `Head`, then the pieces of the answer. Whatever ends it early (a refusal, a
failure, a client that left) passes through the same `finally`, which settles. Close it by `aclosing`.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple

import msgspec

from backends import sse
from backends.base import Answer, Backend, Call, Event
from backends.errors import BackendError, UpstreamBroken
from backends.wire import Body
from gateway.attempts import Attempts, Question
from gateway.bookkeeping import Bookkeeping
from gateway.errors import explain
from gateway.exchange import Exchange
from gateway.targets import Targets


class Head(NamedTuple):
    """The answer's status is 200; it goes out when this has come."""

    headers: dict[str, str]


class Piece(NamedTuple):
    raw: bytes
    last: bool


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

    async def answer(self, exchange: Exchange, body: Body) -> AsyncGenerator[Head | Piece, None]:
        """
        Raises:
            PolicyError, RetrievalError, BackendError, GatewayError: before the `Head`, nowhere else.
        """
        assert exchange.caller is not None
        exchange.model = body.require("model", str)
        exchange.stream = body.read("stream", bool, False)
        target = self._targets.resolve(exchange.model, exchange.caller)
        with self._books.of(exchange):
            await self._books.admit(exchange)
            question = await self._attempts.ask(exchange, target, body)
            answer = self._streamed if exchange.stream else self._whole
            async with aclosing(answer(exchange, question)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _whole(self, exchange: Exchange, question: Question) -> AsyncGenerator[Head | Piece, None]:
        answer = await self._answered(exchange, question)
        exchange.usage = answer.usage or self._books.estimate(exchange, len(answer.body))
        exchange.outcome = "complete"
        self._books.close(exchange)
        facts = {"content-type": "application/json", "content-length": str(len(answer.body))}
        yield self._head(exchange, facts | dict(answer.headers))
        yield Piece(answer.body, last=True)

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

    async def _streamed(self, exchange: Exchange, question: Question) -> AsyncGenerator[Head | Piece, None]:
        async with AsyncExitStack() as stack:
            first, events = await self._first(exchange, question, stack)
            yield self._head(exchange, {"content-type": "text/event-stream", "cache-control": "no-store"})
            try:
                async for event in _chain(first, events):
                    exchange.usage = event.usage or exchange.usage
                    exchange.text_bytes += event.text_bytes
                    if event.last:
                        exchange.outcome = "complete"
                        self._books.close(exchange)
                    if event.raw:
                        yield Piece(event.raw, event.last)
            except BackendError as failure:
                yield self._broken(exchange, failure)

    async def _first(
        self, exchange: Exchange, question: Question, stack: AsyncExitStack
    ) -> tuple[Event, AsyncGenerator[Event, None]]:
        """The first attempt that yields an event; the attempts before it are closed."""
        while (attempt := await self._next_attempt(exchange, question)) is not None:
            backend, call = attempt
            waiting_since = self._clock()
            events = backend.stream(call)
            try:
                first = await anext(events)
                await stack.enter_async_context(aclosing(events))
                return first, events
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

    def _head(self, exchange: Exchange, headers: dict[str, str]) -> Head:
        exchange.overhead_s = self._clock() - exchange.started_s - exchange.waited_s
        self._books.first_byte(exchange)
        return Head(headers | exchange.headers())

    def _broken(self, exchange: Exchange, failure: BackendError) -> Piece:
        """After the first byte: one error event, and the stream is over. It never looks complete."""
        told = explain(failure)
        exchange.outcome, exchange.error = "broken", told.meaning.code
        self._books.close(exchange)
        return Piece(sse.encode(msgspec.json.encode(told.body)), last=True)


async def _chain(first: Event, rest: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in rest:
        yield event
