"""The story of one embedding request: inputs as text, vectors from the cache or a backend, rendered as asked."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from backends.base import EMBEDDINGS, Backend, Call
from backends.encodings import EncodingMissing, Encodings
from backends.errors import InvalidRequest
from backends.wire import Body, Usage
from gateway.attribution import attribute
from gateway.bookkeeping import BYTES_PER_TOKEN, Bookkeeping
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.targets import Target, Targets
from gateway.tries import Tries
from gateway.turns import in_turn
from policies.errors import QuotaExceeded
from policies.roles import Caller
from policies.routing import Station
from policies.token_counts import upper_bound
from retrieval.embedding import Embedded, Embedder, Use, render
from retrieval.embedding_cache import EmbeddingCache
from retrieval.errors import TokensUndecodable
from retrieval.settings import EmbeddingCacheSettings

MAX_INPUTS = 2048
"""OpenAI's limit of one call."""

SPECIAL_TOKENS = 2
"""Around each text, in the models that have such."""

IDS_ENCODING = "cl100k_base"
"""What clients that send token ids have used: LangChain's fallback, and OpenAI's embedding models' own."""


class Embeddings:
    def __init__(
        self,
        targets: Targets,
        backends: Mapping[str, Backend],
        cache: EmbeddingCache,
        books: Bookkeeping,
        encodings: Encodings,
        settings: EmbeddingCacheSettings,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._targets = targets
        self._backends = backends
        self._embedders = {name: Embedder(backend, cache) for name, backend in backends.items()}
        self._books = books
        self._encodings = encodings
        self.settings = settings
        self.cache = cache
        self._clock = clock

    async def answer(self, exchange: Exchange, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, BackendError, RetrievalError, GatewayError
        """
        assert exchange.caller is not None
        exchange.model = body.require("model", str)
        attribute(exchange, body)
        encoding = body.read("encoding_format", str, "float")
        if encoding not in ("float", "base64"):
            raise InvalidRequest("'encoding_format' is float or base64.", param="encoding_format")
        with self._books.of(exchange, outlet, body.raw):
            embedded = await self.made(exchange, body)
            answer = msgspec.json.encode(render(embedded, model=exchange.model, encoding=encoding))
            exchange.outcome = "complete"
            self._books.close(exchange)
            self._books.first_byte(exchange, self._clock())
            await outlet.whole(answer, {"content-type": "application/json"})

    async def made(
        self,
        exchange: Exchange,
        body: Body,
        texts: list[str] | None = None,
        *,
        keep: bool = True,
        admitted: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Embedded:
        """Vectors by the model that `exchange.model` names, admitted and counted. To be called inside of the books.

        Args:
            texts: None: those of the body.
            keep: so that they can be searched, where the configuration says so.

        Raises:
            PolicyError, BackendError, RetrievalError, GatewayError
        """
        assert exchange.caller is not None
        target = self._targets.resolve(exchange.model, exchange.caller) if admitted else await self.admit(exchange)
        texts = await self._texts(body) if texts is None else texts
        stations = self._targets.stations(target, exchange.caller)
        tries = Tries(exchange.model, stations, retries=target.settings.retries)
        embedded = await self._embed(
            exchange, tries, texts, body, self.use_of(exchange, keep=keep)._replace(progress=progress)
        )
        details = {"cached_tokens": embedded.cached_tokens} if embedded.cached_tokens else None
        exchange.usage = Usage(embedded.prompt_tokens, 0, details)
        exchange.cache = _cache_word(embedded.hits, len(texts))
        self._books.count_cache(hits=embedded.hits, misses=len(texts) - embedded.hits)
        return embedded

    async def admit(self, exchange: Exchange) -> Target:
        """As a request, for a model that the caller may use.

        Raises:
            PolicyError
        """
        assert exchange.caller is not None
        target = self._targets.resolve(exchange.model, exchange.caller)
        exchange.entry, exchange.price = target.settings.name, target.price
        await self._books.admit(exchange)
        return target

    async def _embed(self, exchange: Exchange, tries: Tries, texts: list[str], body: Body, use: Use) -> Embedded:
        return await in_turn(
            exchange, tries, lambda station: self._ask(exchange, station, texts, body, use), clock=self._clock
        )

    async def _ask(self, exchange: Exchange, station: Station, texts: list[str], body: Body, use: Use) -> Embedded:
        exchange.prompt_tokens = sum(map(len, texts)) // BYTES_PER_TOKEN
        await self._hold(exchange, station.backend, texts, body)
        self._books.begin(exchange)
        own = body.replace(model=station.model)
        assert exchange.caller is not None
        caller = exchange.caller.key_id
        call = Call(
            EMBEDDINGS,
            own,
            exchange.id,
            exchange.model,
            caller=caller,
            headers=exchange.crossing,
            meter=exchange.meter,
        )
        return await self._embedders[station.backend].embed(texts, call, use)

    async def _hold(self, exchange: Exchange, backend: str, texts: list[str], body: Body) -> None:
        """As many tokens as there are bytes; counted only when that is too much, so that a hit wakes no worker."""
        if self._backends[backend].local:
            await self._books.hold_work(exchange, backend)
        if not self._books.counts_tokens(exchange):
            return
        try:
            bound = upper_bound(sum(SPECIAL_TOKENS + len(text.encode()) for text in texts))
            await self._books.hold(exchange, bound, 0)
        except QuotaExceeded:
            call = Call(EMBEDDINGS, body.replace(input=texts), exchange.id, exchange.model)
            size = await self._backends[backend].count(call)
            if size is None:
                raise
            await self._books.hold(exchange, size.prompt_tokens, 0)

    def use_of(self, exchange: Exchange, *, keep: bool = True) -> Use:
        """What the client and the configuration say about the cache."""
        assert exchange.caller is not None
        settings, caller = self.settings, exchange.caller
        words = {word.strip().lower() for word in exchange.cache_control.split(b",")}
        writes = b"no-store" not in words
        return Use(
            shared_by(settings.sharing, caller),
            read=writes and b"no-cache" not in words,
            write=writes,
            owner=shared_by(settings.search, caller) if settings.keep_text and writes and keep else None,
        )

    async def _texts(self, body: Body) -> list[str]:
        """The inputs in order, as text.

        Raises:
            InvalidRequest, TokensUndecodable
        """
        value = body.require("input", Any)
        items: list[Any] = (
            [value] if isinstance(value, str) or _is_ids(value) else value if isinstance(value, list) else []
        )
        if not items:
            raise InvalidRequest(
                "'input' must be a string, a list of strings, or token ids, and not empty.", param="input"
            )
        if len(items) > MAX_INPUTS:
            raise InvalidRequest(
                f"'input' holds {len(items)} items; {MAX_INPUTS} are allowed in one call.", param="input"
            )
        texts = [
            item if isinstance(item, str) else await self._decoded(item, index) for index, item in enumerate(items)
        ]
        for index, text in enumerate(texts):
            if not text:
                raise InvalidRequest("'input' must not hold an empty string.", param=f"input[{index}]")
        return texts

    async def _decoded(self, item: Any, index: int) -> str:
        if not _is_ids(item):
            raise InvalidRequest(
                "'input' must be a string, a list of strings, or token ids, and not empty.", param=f"input[{index}]"
            )
        try:
            return await asyncio.to_thread(self._encodings.decode, IDS_ENCODING, item)
        except (EncodingMissing, ValueError) as exc:
            raise TokensUndecodable(
                f"input[{index}] holds token ids, but {exc}; or send text", param=f"input[{index}]"
            ) from None


def shared_by(sharing: str, caller: Caller) -> str:
    """The name of those who share: a key's, a role's, or everybody's."""
    return {"key": f"key:{caller.key_id}", "role": f"role:{caller.role.name}"}.get(sharing, "all")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _cache_word(hits: int, inputs: int) -> str:
    return "hit" if hits == inputs else "partial" if hits else "miss"
