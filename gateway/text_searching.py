"""The story of a search among cached texts: the query becomes a vector, by the model that made those of the texts."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from backends.errors import InvalidRequest
from backends.wire import Body
from gateway.attribution import attribute
from gateway.bookkeeping import Bookkeeping
from gateway.embeddings import Embeddings, shared_by
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from retrieval.settings import EmbeddingCacheSettings
from retrieval.text_search import TextSearch

MAX_K = 1000


class TextSearching:
    def __init__(
        self,
        embeddings: Embeddings,
        search: TextSearch,
        books: Bookkeeping,
        settings: EmbeddingCacheSettings,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._embeddings = embeddings
        self._search = search
        self._books = books
        self._settings = settings
        self._clock = clock

    async def answer(self, exchange: Exchange, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, BackendError, RetrievalError, GatewayError, SQLAlchemyError
        """
        assert exchange.caller is not None
        exchange.model = body.require("model", str)
        attribute(exchange, body)
        query, k = body.require("query", str), body.read("k", int, 10)
        if not query:
            raise InvalidRequest("'query' must not be empty.", param="query")
        if not 1 <= k <= MAX_K:
            raise InvalidRequest(f"'k' is {k}; it must lie between 1 and {MAX_K}.", param="k")
        if not self._settings.keep_text:
            raise InvalidRequest("texts are not kept here: `embedding_cache.keep_text` is off.", param="query")
        with self._books.of(exchange, outlet, body.raw):
            asked = body.without("query", "k")
            embedded = await self._embeddings.made(exchange, asked, [query], keep=False)
            owner = shared_by(self._settings.search, exchange.caller)
            near = await self._search.nearest(embedded.vectors[0], k, owner=owner, space=embedded.space)
            usage = {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens}
            data: list[dict[str, Any]] = [
                {"object": "embedding.match", "index": place, "text": one.text, "score": one.score}
                for place, one in enumerate(near)
            ]
            told = {"object": "list", "model": exchange.model, "data": data, "usage": usage}
            exchange.outcome = "complete"
            self._books.close(exchange)
            self._books.first_byte(exchange, self._clock())
            await outlet.whole(msgspec.json.encode(told), {"content-type": "application/json"})
