"""The story of one rerank request: a query and documents, scored by a model of this machine or by a provider, as Jina and Cohere do."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backends.base import RERANK, Answer, Backend, Call
from backends.errors import InvalidRequest
from backends.wire import MAX_TOKENS, Body, Usage
from gateway.attribution import attribute
from gateway.bookkeeping import BYTES_PER_TOKEN, Bookkeeping
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.targets import Target, Targets
from gateway.tries import Tries
from gateway.turns import in_turn
from policies.errors import QuotaExceeded
from policies.routing import Station
from policies.token_counts import upper_bound


class _Counted(msgspec.Struct):
    """What providers say of their work: Jina's and vLLM's form. Cohere counts searches, which are no tokens."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class _Counts(msgspec.Struct):
    usage: _Counted | None = None


class Reranking:
    def __init__(
        self,
        targets: Targets,
        backends: Mapping[str, Backend],
        books: Bookkeeping,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._targets = targets
        self._backends = backends
        self._books = books
        self._clock = clock

    async def answer(self, exchange: Exchange, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, BackendError, GatewayError
        """
        assert exchange.caller is not None
        exchange.model = body.require("model", str)
        attribute(exchange, body)
        body.require("query", Any)  # what they may be is the model's affair: some read images
        if not body.require("documents", list[Any]):
            raise InvalidRequest("'documents' must hold at least one document.", param="documents")
        with self._books.of(exchange, outlet, body.raw):
            target = self._targets.resolve(exchange.model, exchange.caller)
            exchange.entry, exchange.price = target.settings.name, target.price
            await self._books.admit(exchange)
            answer = await in_turn(
                exchange,
                self._tries(exchange, target),
                lambda station: self._ask(exchange, station, body),
                clock=self._clock,
            )
            exchange.usage = usage_of(answer.body) or Usage()
            exchange.outcome = "complete"
            exchange.keep(answer.body)
            self._books.close(exchange)
            self._books.first_byte(exchange, self._clock())
            await outlet.whole(answer.body, {"content-type": "application/json", **answer.headers})

    def _tries(self, exchange: Exchange, target: Target) -> Tries:
        assert exchange.caller is not None
        if target.prompt is not None or target.settings.collections:
            raise InvalidRequest(
                f"the model '{exchange.model}' has a prompt template or documents, which {RERANK} cannot take.",
                param="model",
            )
        stations = self._targets.stations(target, exchange.caller)
        return Tries(exchange.model, stations, retries=target.settings.retries)

    async def _ask(self, exchange: Exchange, station: Station, body: Body) -> Answer:
        assert exchange.caller is not None
        backend = self._backends[station.backend]
        call = Call(
            RERANK,
            body if station.model == exchange.model else body.replace(model=station.model),
            exchange.id,
            exchange.model,
            caller=exchange.caller.key_id,
            role=exchange.caller.role.name,
            headers=exchange.crossing,
            meter=exchange.meter,
        )
        exchange.prompt_tokens = len(body.raw) // BYTES_PER_TOKEN
        await self._hold(exchange, backend, call)
        self._books.begin(exchange)
        return await backend.complete(call)

    async def _hold(self, exchange: Exchange, backend: Backend, call: Call) -> None:
        """A model here counts exactly, the query with each document; of a provider, the query counts once for each."""
        if backend.local:
            await self._books.hold_work(exchange, backend.name)
        if not self._books.counts_tokens(exchange):
            return
        size = await backend.count(call)
        if size is not None:
            exchange.prompt_tokens = size.prompt_tokens
            await self._books.hold(exchange, size.prompt_tokens, 0)
            return
        query, documents = call.body.read("query", msgspec.Raw), call.body.read("documents", list[Any], [])
        repeated = len(bytes(query or b"")) * len(documents)
        try:
            await self._books.hold(exchange, upper_bound(len(call.body.raw) + repeated), 0)
        except QuotaExceeded:
            await self._books.hold(exchange, (len(call.body.raw) + repeated) // BYTES_PER_TOKEN, 0)


def usage_of(answer: bytes) -> Usage | None:
    """None: the provider counts in something else."""
    try:
        counted = msgspec.json.decode(answer, type=_Counts).usage
    except msgspec.MsgspecError:
        return None
    if counted is None:
        return None
    tokens = counted.prompt_tokens or counted.total_tokens
    return Usage(tokens, 0) if 0 <= tokens <= MAX_TOKENS else None
