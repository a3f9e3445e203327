"""What a request gets from collections: which ones it may read, what is searched for, what is found, and the record of it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from backends.base import CHAT, Backend, Call
from backends.errors import BackendError, BackendUnavailable, InvalidRequest
from backends.quote import question_of
from backends.wire import Body
from gateway.access import Access
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.targets import Target, Targets
from policies.errors import NotThere
from policies.roles import Caller
from retrieval.candidates import BALANCE, Weights
from retrieval.catalog import Stored
from retrieval.citations import last_user
from retrieval.filters import check
from retrieval.retrievals import Retrievals, conversation_of
from retrieval.rewriting import rewritten
from retrieval.search import Findings, Found, Searcher
from retrieval.settings import CollectionSettings, RetrievalSettings

log = logging.getLogger("chasqui")

EXTENSIONS = ("collections", "retrieval", "include")
"""Fields of ours, taken out of a body before an engine gets it."""

MAX_COLLECTIONS = 16
TOUCH_S = 60
"""A store counts as used at this grain."""

CLIENTS_OWN = frozenset(
    ("top_k", "max_context_tokens", "mode", "min_score", "candidates", "neighbours", "citations", "keep_previous")
)
SWITCHES = ("rewrite", "rerank")
"""What a client can switch off, or on where the configuration names a model for it."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request wants of collections."""

    collections: Sequence[Stored]
    settings: RetrievalSettings
    condition: Any = None
    shows: bool = False
    """The passages are to be in the answer, too."""

    def words(self) -> str:
        """The same for the same wish."""
        ids = [stored.public_id for stored in self.collections]
        return f"{ids}{self.settings!r}{self.condition!r}{self.shows}"


@dataclass(slots=True)
class Retrieved:
    """What was found for a request, and how."""

    wish: Wish
    id: str
    query: str
    queries: Sequence[str] = ()
    found: Sequence[Found] = ()
    degraded: Sequence[str] = ()
    again: bool = False
    """It goes on with what was found before, and nothing was searched for."""
    declared: Mapping[str, CollectionSettings] = field(default_factory=dict)

    @property
    def tools(self) -> bool:
        """An engine that sees these passages may call tools."""
        return all(one.tools for one in self._settings)

    @property
    def local_only(self) -> bool:
        return any(one.local_only for one in self._settings)

    @property
    def _settings(self) -> list[CollectionSettings]:
        ids = [stored.public_id for stored in self.wish.collections]
        return [self.declared[id_] for id_ in ids if id_ in self.declared]

    def link(self, one: Found) -> str:
        """Where a citation leads."""
        settings = self.declared.get(one.chunk.collection_id)
        if one.chunk.kind == "url":
            return one.chunk.path
        if settings is not None and settings.link:
            return settings.link.replace("{path}", one.chunk.path)
        return f"/v1/files/{one.chunk.file_id}/content" if one.chunk.kind == "file" else f"file:{one.chunk.path}"

    def told(self, left_out: Sequence[int] = ()) -> dict[str, Any]:
        """For clients."""
        return {
            "id": self.id,
            "object": "retrieval",
            "query": self.query,
            "queries": list(self.queries),
            "mode": self.wish.settings.mode,
            "collections": [stored.name for stored in self.wish.collections],
            "passages": [passage_object(number, one, self.link(one)) for number, one in enumerate(self.found, 1)],
            "left_out": list(left_out),
            "degraded": list(self.degraded),
        }


class Retrieving:
    """
    Args:
        clock: seconds, for durations.
    """

    def __init__(
        self,
        access: Access,
        searcher: Searcher,
        retrievals: Retrievals,
        targets: Targets,
        backends: Mapping[str, Backend],
        metrics: Metrics,
        *,
        default_rewrite: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.access = access
        self._searcher = searcher
        self._retrievals = retrievals
        self._targets = targets
        self._backends = backends
        self._metrics = metrics
        self._default_rewrite = default_rewrite
        self._clock = clock

    async def wish_of(self, exchange: Exchange, target: Target, body: Body) -> Wish | None:
        """None: no collection has to do with it.

        Raises:
            InvalidRequest, NotThere
        """
        names = [*target.settings.collections, *(body.read("collections", list[str]) or [])]
        if len(names) > MAX_COLLECTIONS:
            raise InvalidRequest(f"more than {MAX_COLLECTIONS} collections at a time.", param="collections")
        shows = shows_passages(body)
        if not names:
            if "retrieval" in body:
                raise InvalidRequest(
                    "'retrieval' says how to search: name 'collections', or a model that has some.", param="retrieval"
                )
            return None
        assert exchange.caller is not None
        settings, condition = asked_settings(target.settings.retrieval, body.read("retrieval", dict[str, Any]))
        return Wish(await self.access.all(exchange.caller, names), settings, condition, shows)

    async def find(self, exchange: Exchange, wish: Wish, body: Body) -> Retrieved:
        """For the client's own last words. A turn that ends in tool results goes on with what was found before.

        Raises:
            InvalidRequest, CollectionNotReady, BackendError, SQLAlchemyError
        """
        began = self._clock()
        query = question_of(body)
        if not query.strip():
            raise InvalidRequest("the last user message holds no text to search the documents for.", param="messages")
        messages = body.read("messages", list[dict[str, Any]], [])
        retrieved = Retrieved(wish, f"ret_{exchange.id.removeprefix('req_')}", query, declared=self.access.declared)
        if messages and messages[-1].get("role") in ("tool", "function"):
            retrieved.again = True
            retrieved.found = await self._found_before(exchange, wish, messages[: (last_user(messages) or 0) + 1])
        else:
            retrieved.queries = await self._queries(exchange, wish, query, messages)
            findings = await self.search(
                wish.collections, retrieved.queries, wish.settings, exchange.id, condition=wish.condition
            )
            retrieved.found = await self._with_previous(exchange, wish, findings.found, messages)
            retrieved.degraded = list(dict.fromkeys(findings.degraded))
            self._metrics.retrieved(seconds=self._clock() - began, found=len(retrieved.found))
        await self._keep(exchange, retrieved, messages)
        return retrieved

    async def search(
        self,
        collections: Sequence[Stored],
        queries: Sequence[str],
        settings: RetrievalSettings,
        request_id: str,
        *,
        condition: Any = None,
        weights: Weights = BALANCE,
    ) -> Findings:
        """
        Raises:
            CollectionNotReady, FilterInvalid, BackendError, SQLAlchemyError
        """
        findings = await self._searcher.search(
            collections, queries, settings, request_id=request_id, condition=condition, weights=weights
        )
        for leg in findings.degraded:
            self._metrics.degraded(leg)
        for stored in collections:
            if stored.expires_days is not None and time.time() - stored.last_active_at > TOUCH_S:
                await self._searcher.library.catalog.touch(stored.id)
        return findings

    async def _queries(
        self, exchange: Exchange, wish: Wish, query: str, messages: Sequence[dict[str, Any]]
    ) -> list[str]:
        """A follow-up is searched for as it is, and as a model has rewritten it, where that is switched on."""
        name, last = wish.settings.rewrite, last_user(messages)
        if not name or last is None or last_user(messages[:last]) is None:
            return [query]
        asked = await rewritten(
            messages[: last + 1], lambda fields: self._completed(exchange, wish.collections, str(name), fields)
        )
        return [query] if asked is None else list(dict.fromkeys([asked, query]))

    async def rewritten(self, exchange: Exchange, collections: Sequence[Stored], query: str) -> str:
        """A single question, by the model that `default_rewrite` names; as it is where there is none, or it fails."""
        name = self._default_rewrite
        if name is None:
            return query
        messages = [{"role": "user", "content": query}]
        asked = await rewritten(messages, lambda fields: self._completed(exchange, collections, name, fields))
        return asked or query

    async def _completed(
        self, exchange: Exchange, collections: Sequence[Stored], model: str, fields: dict[str, Any]
    ) -> bytes:
        """By the first station of the model that answers; where passages must stay here, the conversation about them does, too."""
        assert exchange.caller is not None
        declared = self.access.declared
        stays = any(declared[one.public_id].local_only for one in collections if one.public_id in declared)
        failure: BackendError = BackendUnavailable(model, "no backend of its route may be used for this request")
        for station in self._targets.stations(self._targets.configured(model), exchange.caller):
            backend = self._backends[station.backend]
            if backend.quotes or (stays and not backend.local):
                continue
            call = Call(
                CHAT, Body(b"{}").replace(model=station.model, **fields), exchange.id, model,
                caller=exchange.caller.key_id, role=exchange.caller.role.name, meter=exchange.meter,
            )  # fmt: skip
            try:
                return (await backend.complete(call)).body
            except BackendError as exc:
                failure = exc
        raise failure

    async def _with_previous(
        self, exchange: Exchange, wish: Wish, found: Sequence[Found], messages: Sequence[dict[str, Any]]
    ) -> Sequence[Found]:
        """`That one, please` means nothing to a search: what the turn before was about stays, behind what is new."""
        last = last_user(messages)
        before = last_user(messages[:last]) if last is not None else None
        if before is None or not wish.settings.keep_previous:
            return found
        known = {one.chunk.id for one in found}
        previous = await self._found_before(exchange, wish, messages[: before + 1])
        kept = [one for one in previous if one.chunk.id not in known][: wish.settings.keep_previous]
        return [*found, *kept]

    async def _found_before(self, exchange: Exchange, wish: Wish, messages: Sequence[dict[str, Any]]) -> list[Found]:
        """Of the turn that ended with these messages, as far as it is still there and asked for."""
        assert exchange.caller is not None
        record = await self._retrievals.of_conversation(
            conversation_of(exchange.caller.key_id, exchange.model, messages)
        )
        if record is None:
            return []
        scores = {int(one["chunk"]): float(one["score"]) for one in record["passages"]}
        chunks = await self._searcher.library.documents.chunks(list(scores))
        ids = {stored.public_id for stored in wish.collections}
        return [
            Found(chunks[id_], score, chunks[id_].text)
            for id_, score in scores.items()
            if id_ in chunks and chunks[id_].collection_id in ids
        ]

    async def recall(self, caller: Caller, id_: str) -> dict[str, Any]:
        """What was found for an earlier answer, as it is now.

        Raises:
            NotThere: or not for this caller.
        """
        known = await self._retrievals.get(id_) if "\0" not in id_ else None
        if known is None or self.access.owner(caller) not in (None, known[0]):
            raise NotThere("retrieval", id_)
        record = known[1]
        try:
            stored = await self.access.all(caller, record["collections"])
        except NotThere:
            raise NotThere("retrieval", id_) from None
        chunks = await self._searcher.library.documents.chunks([one["chunk"] for one in record["passages"]])
        retrieved = Retrieved(Wish(stored, RetrievalSettings()), id_, "", declared=self.access.declared)
        passages = []
        for number, one in enumerate(record["passages"], start=1):
            if (chunk := chunks.get(one["chunk"])) is not None:
                found = Found(chunk, one["score"], chunk.text)
                passages.append(passage_object(number, found, retrieved.link(found)))
        names = [one.name for one in stored]
        told = {name: record[name] for name in ("query", "mode", "degraded")}
        return {"id": id_, "object": "retrieval", **told, "collections": names, "passages": passages}

    async def _keep(self, exchange: Exchange, retrieved: Retrieved, messages: Sequence[dict[str, Any]]) -> None:
        """Texts are not repeated here: what is deleted is gone. Nor is the question, unless the key has its contents kept."""
        assert exchange.caller is not None
        caller = exchange.caller
        record = {
            "mode": retrieved.wish.settings.mode,
            "collections": [stored.public_id for stored in retrieved.wish.collections],
            "passages": [{"chunk": one.chunk.id, "score": round(one.score, 6)} for one in retrieved.found],
            "degraded": list(retrieved.degraded),
            "query": retrieved.query if caller.log_content else None,
        }
        last = last_user(messages)
        said = messages[: last + 1] if last is not None else [{"role": "user", "content": retrieved.query}]
        conversation = conversation_of(caller.key_id, exchange.model, said)
        try:
            await self._retrievals.keep(
                retrieved.id, record, owner=caller.role.name, key=caller.key_id, conversation=conversation
            )
            exchange.retrieval = retrieved.id
        except SQLAlchemyError as exc:
            log.warning("%s: what was found cannot be looked up afterwards: %s", exchange.id, exc)


def shows_passages(body: Body) -> bool:
    """Whether the passages are to be in the answer.

    Raises:
        InvalidRequest
    """
    wanted = body.read("include", list[str]) or []
    for one in wanted:
        if one != "retrieval":
            raise InvalidRequest("'include' knows 'retrieval' only.", param="include")
    return bool(wanted)


def asked_settings(base: RetrievalSettings, given: Mapping[str, Any] | None) -> tuple[RetrievalSettings, Any]:
    """The model's settings with what the client says, and its filters.

    Raises:
        InvalidRequest, FilterInvalid
    """
    if not given:
        return base, None
    given = dict(given)
    condition = given.pop("filters", None)
    if condition is not None:
        check(condition)
    values = base.model_dump()
    for name in SWITCHES:
        if name in given:
            wanted = given.pop(name)
            if not isinstance(wanted, bool) or (wanted and not values[name]):
                raise InvalidRequest(
                    f"'retrieval.{name}' is false, or true where the configuration names a model for it.",
                    param=f"retrieval.{name}",
                )
            values[name] = values[name] if wanted else False
    for name in given.keys() - CLIENTS_OWN:
        raise InvalidRequest(f"'{name[:40]}' is no field of 'retrieval'.", param=f"retrieval.{name[:40]}")
    try:
        return RetrievalSettings.model_validate(values | given), condition
    except ValidationError as exc:
        problem = exc.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InvalidRequest(
            f"Invalid value for 'retrieval.{place}': {problem['msg']}", param=f"retrieval.{place}"
        ) from None


def passage_object(number: int, one: Found, link: str) -> dict[str, Any]:
    return {
        "number": number,
        "collection": one.chunk.collection,
        "vector_store_id": one.chunk.collection_id,
        "file_id": one.chunk.file_id,
        "filename": one.chunk.path,
        "url": link,
        "title": one.chunk.title,
        "heading": one.chunk.heading,
        "page": one.chunk.page,
        "score": round(one.score, 6),
        "text": one.text,
    }
