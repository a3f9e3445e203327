"""The story of a request beside chat, completions and embeddings: images, audio, moderations, responses. The gateway reads
which model it is for, keys, limits and routes apply, and everything else goes through untouched.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from backends import sse
from backends.base import Forward, Forwarded
from backends.errors import BackendError, InvalidRequest
from backends.forward_watch import usage_of
from backends.health import Watched
from backends.transport import Upload
from backends.wire import Body, rename_model
from gateway.attribution import MAX_USER_CHARS, attribute, plain
from gateway.bookkeeping import Bookkeeping
from gateway.errors import GatewayStopping, explain
from gateway.exchange import Exchange
from gateway.form import Form
from gateway.outlet import Outlet
from gateway.targets import Target, Targets
from gateway.tries import Tries
from gateway.turns import in_turn
from policies.errors import PathHidden
from policies.routing import Station
from policies.token_counts import UPSTREAM_MAX_TOKENS, upper_bound

GENERATING = ("/v1/responses",)
"""Paths whose answers have tokens, as many as the upstream likes where the client does not say."""


class Content(Protocol):
    """What a client sent."""

    model: str
    content_type: str
    answer_tokens: int | None
    """Of its answer, at most; None: as many as the upstream likes."""
    bound_tokens: int
    """Of its prompt, at most, or where that cannot be told one: whoever has nothing left is refused."""
    prompt_tokens: int
    """What its prompt takes, about; for clients who leave before the upstream has said."""

    asked: bytes
    """For the ledger, where the key has it kept."""

    def named(self, model: str) -> bytes | Upload: ...

    def attribute(self, exchange: Exchange) -> None:
        """Whom it is for, where it says so."""
        ...


class JsonContent:
    content_type = "application/json"

    def __init__(self, body: Body, path: str) -> None:
        self._body = body
        self.model = body.require("model", str)
        asked = body.read("max_output_tokens", int)
        self.answer_tokens = max(0, asked) if asked is not None else None if path in GENERATING else 0
        self.bound_tokens = upper_bound(len(body.raw))
        self.asked = body.raw
        self.prompt_tokens = len(body.raw) // 4

    def named(self, model: str) -> bytes:
        return self._body.raw if model == self.model else self._body.replace(model=model).raw

    def attribute(self, exchange: Exchange) -> None:
        attribute(exchange, self._body)


class FormContent:
    answer_tokens: int | None = 0
    prompt_tokens = 0
    bound_tokens = 1
    asked = b""

    def __init__(self, form: Form) -> None:
        self._form = form
        self.content_type = form.content_type
        if "model" not in form.fields:
            raise InvalidRequest(
                "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
            )
        self.model = form.fields["model"]

    def named(self, model: str) -> Upload:
        return self._form.named(model)

    def attribute(self, exchange: Exchange) -> None:
        exchange.user = plain(self._form.fields.get("user", ""), MAX_USER_CHARS)


class Forwarding:
    def __init__(
        self,
        targets: Targets,
        backends: Mapping[str, Watched],
        books: Bookkeeping,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._targets = targets
        self._backends = backends
        self._books = books
        self._clock = clock

    def knows(self, path: str) -> bool:
        """Whether any backend gets requests to this path."""
        return any(backend.forwards(path) for backend in self._backends.values())

    async def answer(self, exchange: Exchange, content: Content, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, BackendError, GatewayError: before the first byte; after it, `BackendError` for what is no stream.
        """
        assert exchange.caller is not None
        exchange.model = content.model
        content.attribute(exchange)
        with self._books.of(exchange, outlet, content.asked):
            target = self._targets.resolve(content.model, exchange.caller)
            exchange.entry, exchange.price = target.settings.name, target.price
            tries = self._tries(exchange, target)
            await self._books.admit(exchange)
            exchange.prompt_tokens = content.prompt_tokens
            if self._books.counts_tokens(exchange):
                tokens = content.answer_tokens
                if tokens is None:
                    tokens = target.settings.default_max_tokens or UPSTREAM_MAX_TOKENS
                await self._books.hold(exchange, content.bound_tokens, tokens)
            answer = await self._asked(exchange, tries, content)
            try:
                if answer.whole is not None:
                    await self._pass_whole(exchange, answer, answer.whole, outlet)
                else:
                    await self._pass_on(exchange, answer, outlet)
            finally:
                await answer.pieces.aclose()

    def _tries(self, exchange: Exchange, target: Target) -> Tries:
        assert exchange.caller is not None
        if target.prompt is not None or target.settings.collections:
            raise InvalidRequest(
                f"the model '{exchange.model}' has a prompt template or documents, which {exchange.path} cannot take.",
                param="model",
            )
        stations = self._targets.stations(target, exchange.caller)
        stations = [station for station in stations if self._backends[station.backend].forwards(exchange.path)]
        if not stations:
            raise PathHidden(f"{exchange.path} for the model '{exchange.model[:200]}'")
        return Tries(exchange.model, stations, retries=target.settings.retries)

    async def _asked(self, exchange: Exchange, tries: Tries, content: Content) -> Forwarded:
        return await in_turn(exchange, tries, lambda station: self._ask(exchange, station, content), clock=self._clock)

    async def _ask(self, exchange: Exchange, station: Station, content: Content) -> Forwarded:
        assert exchange.caller is not None
        self._books.begin(exchange)
        call = Forward(
            exchange.path,
            content.named(station.model),
            content.content_type,
            exchange.id,
            station.model,
            exchange.crossing,
            exchange.caller.key_id,
            exchange.meter,
        )
        return await self._backends[station.backend].forward(call)

    async def _pass_whole(self, exchange: Exchange, answer: Forwarded, body: bytes, outlet: Outlet) -> None:
        async for _ in answer.pieces:  # there are none; the end is the backend's good mark
            pass
        exchange.usage = usage_of(msgspec.json.decode(body))
        exchange.outcome = "complete"
        exchange.keep(body)
        self._books.close(exchange)
        self._books.first_byte(exchange, self._clock())
        await outlet.whole(rename_model(body, exchange.model) if body.startswith(b"{") else body, answer.headers)

    async def _pass_on(self, exchange: Exchange, answer: Forwarded, outlet: Outlet) -> None:
        """Piece by piece, each waited for until the client takes it. A stream of events that breaks ends in an error event; of
        anything else, only the connection's end can tell.
        """
        self._books.first_byte(exchange, self._clock())
        await outlet.start(answer.headers)
        try:
            async for piece in answer.pieces:
                self._see(exchange, answer)
                if answer.watch is not None:  # events are text, anything else may be sound
                    exchange.keep(piece)
                await outlet.piece(piece, last=False)
        except BackendError as failure:
            await self._broken(exchange, answer, failure, outlet)
            if answer.watch is None:
                raise
            return
        except asyncio.CancelledError:
            if not outlet.gone:
                await self._broken(exchange, answer, GatewayStopping(), outlet)
            raise
        exchange.outcome = "complete"
        self._books.close(exchange)
        await outlet.piece(b"", last=True)

    @staticmethod
    def _see(exchange: Exchange, answer: Forwarded) -> None:
        if answer.watch is not None:
            exchange.usage, exchange.text_bytes = answer.watch.usage, answer.watch.text_bytes

    async def _broken(self, exchange: Exchange, answer: Forwarded, failure: Exception, outlet: Outlet) -> None:
        self._see(exchange, answer)
        told = explain(failure)
        exchange.outcome, exchange.error = "broken", told.meaning.code
        self._books.close(exchange)
        if answer.watch is not None and not outlet.ended:
            await outlet.piece(sse.encode(msgspec.json.encode(told.body), event="error"), last=True)
