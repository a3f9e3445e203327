"""Where a question is looked up before it is asked, and its answer kept afterwards."""

import asyncio
from collections.abc import Mapping

from backends.base import Backend
from backends.errors import BackendError
from gateway.attempts import Question
from gateway.exchange import Exchange
from policies.answer_cache import AnswerCache, Wish, is_finished, key_of, may_be_kept

MAX_RECORDED_BYTES = 64 * 1024 * 1024


class AnswerDesk:
    def __init__(self, cache: AnswerCache, backends: Mapping[str, Backend]) -> None:
        self._cache = cache
        self._backends = backends
        self._keeping: set[asyncio.Task[None]] = set()

    async def find(self, exchange: Exchange, question: Question) -> bytes | None:
        """The answer as it went out before, with every byte. None: it has to be asked; `keep` wants it then."""
        if not self._cache.enabled:
            return None
        wish = wish_of(exchange)
        if not wish.write or not may_be_kept(question.body, wish):
            return None
        try:
            exchange.answer_key = await self._key(exchange, question)
        except BackendError:  # nobody knows what it is any more; whoever can still answers, and nothing is kept
            return None
        found = await self._cache.get(exchange.answer_key) if wish.read else None
        exchange.cache = "miss" if found is None else "hit"
        return found

    def keep(self, exchange: Exchange, question: Question, answer: bytes) -> None:
        """In the background; nobody waits for it. What another station said because the first one could not is not what was asked for."""
        settings, first = question.target.settings, question.target.stations[0]
        second_best = settings.strategy == "order" and exchange.backend != first.backend
        if not answer or second_best or exchange.outcome != "complete":
            return
        if exchange.answer_key is not None and is_finished(answer):
            task = asyncio.create_task(self._cache.put(exchange.answer_key, answer))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)

    async def _key(self, exchange: Exchange, question: Question) -> bytes:
        assert exchange.caller is not None
        stations = question.target.stations
        identities = [await self._backends[station.backend].identity() for station in stations]
        routes = [f"{station.backend}/{station.model}" for station in stations]
        retrieved = question.retrieved
        passages = [f"{one.chunk.source}\0{one.text}" for one in retrieved.found] if retrieved is not None else []
        wished = [retrieved.wish.words()] if retrieved is not None else []
        crossing = [f"{name}:{value}" for name, value in sorted(exchange.crossing.items()) if name != "traceparent"]
        settings = question.target.settings.model_dump_json()
        own = [exchange.caller.key_id, exchange.path, exchange.model, settings]
        parts = [*own, *identities, *routes, *crossing, *wished, *passages]
        return key_of(question.body, parts)


def wish_of(exchange: Exchange) -> Wish:
    words = {word.strip().lower() for word in exchange.cache_control.split(b",")}
    return Wish(exchange.answer_wanted, read=b"no-cache" not in words, write=b"no-store" not in words)
