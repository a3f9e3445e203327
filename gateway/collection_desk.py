"""What can be done with collections over the API: the steps behind `/v1/vector_stores` and `/v1/files`."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from backends.errors import BackendUnavailable, InvalidRequest
from backends.wire import Body
from gateway.bodies import read_struct
from gateway.bookkeeping import Bookkeeping
from gateway.collection_fields import (
    BatchFields,
    MemberFields,
    SearchFields,
    StoreChange,
    StoreFields,
    attributes_of,
    chunking_of,
    members_of,
    metadata_of,
)
from gateway.collection_objects import batch_object, member_object, search_object, store_object
from gateway.exchange import Exchange
from gateway.knowledge import Knowledge
from gateway.outlet import Outlet
from gateway.retrieving import Retrieving, asked_settings
from policies.errors import NotThere
from policies.roles import Caller
from retrieval.candidates import BALANCE, Weights
from retrieval.catalog import Member, NewMember, Page, Stored
from retrieval.documents import Chunk
from retrieval.filters import check
from retrieval.settings import RetrievalSettings

BUILT_IN_RANKERS = ("none", "auto", "default-2024-11-15", "default_2024_08_21")
MAX_QUERIES = 16


class CollectionDesk:
    def __init__(
        self,
        knowledge: Knowledge,
        retrieving: Retrieving,
        books: Bookkeeping,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._knowledge = knowledge
        self._access = knowledge.access
        self._catalog = knowledge.library.catalog
        self._retrieving = retrieving
        self._books = books
        self._clock = clock

    # -- stores

    async def create(self, caller: Caller, fields: StoreFields) -> dict[str, Any]:
        """
        Raises:
            InvalidRequest, NotThere, BackendUnavailable
        """
        if self._knowledge.default_embed is None:
            raise BackendUnavailable(
                "vector_stores", "no backend here makes embeddings; configure one, or `default_embed`"
            )
        chunking, metadata = chunking_of(fields.chunking_strategy), metadata_of(fields.metadata)
        if not caller.reads(name=fields.name or "", id_="", owner=caller.role.name):
            raise InvalidRequest("this key is narrowed to other collections, and could not use it.", param="name")
        members = [await self._new(caller, MemberFields(id_), chunking) for id_ in dict.fromkeys(fields.file_ids)]
        stored = await self._catalog.create(
            name=(fields.name or "").replace("\0", ""),
            owner=caller.role.name,
            embed=self._knowledge.default_embed,
            description=(fields.description or "").replace("\0", ""),
            metadata=metadata,
            expires_days=fields.expires_after.days if fields.expires_after is not None else None,
        )
        if members:
            await self._attach(stored, members)
        return await self.shown(stored)

    async def change(self, caller: Caller, id_: str, fields: StoreChange) -> dict[str, Any]:
        stored = await self._own(caller, id_)
        values: dict[str, Any] = {}
        for name in ("name", "description"):
            if (value := getattr(fields, name)) is not msgspec.UNSET:
                values[name] = (value or "").replace("\0", "")
        if fields.metadata is not msgspec.UNSET:
            values["metadata"] = metadata_of(fields.metadata)
        if fields.expires_after is not msgspec.UNSET:
            values["expires_days"] = fields.expires_after.days if fields.expires_after is not None else None
        changed = await self._catalog.update(stored, **values)
        if changed is None:
            raise NotThere("vector store", id_)
        return await self.shown(changed)

    async def delete(self, caller: Caller, id_: str) -> str:
        stored = await self._own(caller, id_)
        await self._catalog.delete(stored)
        return stored.public_id

    async def rebuild(self, caller: Caller, id_: str) -> dict[str, Any]:
        """Everything in it is read anew; what can be found stays until then."""
        stored = await self._access.collection(caller, id_)
        if stored.declared and self._access.owner(caller) is not None:
            raise InvalidRequest(
                f"'{stored.name}' belongs to the configuration; administrators have it read anew.",
                param="vector_store_id",
            )
        await self._catalog.rebuild(stored.id)
        self._knowledge.library.wanted.set()
        return await self.shown(stored)

    async def shown(self, stored: Stored) -> dict[str, Any]:
        return (await self.all_shown([stored]))[0]

    async def all_shown(self, all_stored: Sequence[Stored]) -> list[dict[str, Any]]:
        counts = await self._catalog.counts([stored.id for stored in all_stored])
        return [store_object(stored, *counts[stored.id]) for stored in all_stored]

    # -- what is in them

    async def attach(self, caller: Caller, id_: str, fields: MemberFields) -> dict[str, Any]:
        stored = await self._own(caller, id_)
        await self._attach(stored, [await self._new(caller, fields, chunking_of(fields.chunking_strategy))])
        return member_object(await self.member(stored, fields.file_id), stored)

    async def attach_batch(self, caller: Caller, id_: str, fields: BatchFields) -> dict[str, Any]:
        stored = await self._own(caller, id_)
        members = {one.file_id: one for one in members_of(fields)}
        new = [await self._new(caller, one, chunking_of(one.chunking_strategy)) for one in members.values()]
        batch = await self._catalog.open_batch(stored.id)
        await self._attach(stored, new, batch=batch)
        return await self.batch(stored, batch)

    async def batch(self, stored: Stored, id_: str) -> dict[str, Any]:
        """
        Raises:
            NotThere
        """
        found = await self._catalog.batch(stored.id, id_) if "\0" not in id_ else None
        if found is None:
            raise NotThere("file batch", id_)
        return batch_object(id_, *found, stored)

    async def cancel_batch(self, caller: Caller, id_: str, batch: str) -> dict[str, Any]:
        stored = await self._own(caller, id_)
        await self.batch(stored, batch)
        await self._catalog.cancel_batch(stored.id, batch)
        return await self.batch(stored, batch)

    async def detach(self, caller: Caller, id_: str, file_id: str) -> None:
        stored = await self._own(caller, id_)
        if "\0" in file_id or not await self._catalog.detach(stored.id, [file_id]):
            raise NotThere("file in this vector store", file_id)

    async def set_attributes(self, caller: Caller, id_: str, file_id: str, given: Any) -> dict[str, Any]:
        stored = await self._own(caller, id_)
        await self._catalog.set_attributes(await self.member(stored, file_id), attributes_of(given))
        return member_object(await self.member(stored, file_id), stored)

    async def member(self, stored: Stored, file_id: str) -> Member:
        """
        Raises:
            NotThere
        """
        found = await self._catalog.member(stored.id, file_id) if "\0" not in file_id else None
        if found is None:
            raise NotThere("file in this vector store", file_id)
        return found

    async def members(
        self, stored: Stored, page: Page, *, status: str | None, batch: str | None = None
    ) -> list[dict[str, Any]]:
        if batch is not None:
            await self.batch(stored, batch)
        found = await self._catalog.members(stored.id, page, status=status, batch=batch)
        return [member_object(one, stored) for one in found]

    async def content(self, stored: Stored, file_id: str) -> list[Chunk]:
        member = await self.member(stored, file_id)
        if member.document_id is None:
            return []
        return await self._knowledge.library.documents.of_document(member.document_id)

    async def _attach(self, stored: Stored, new: Sequence[NewMember], *, batch: str = "") -> None:
        await self._catalog.attach(stored.id, new, batch=batch, uploaded=True)
        self._knowledge.library.wanted.set()

    async def _new(self, caller: Caller, fields: MemberFields, chunking: dict[str, Any]) -> NewMember:
        uploaded = await self._access.file(caller, fields.file_id)
        return NewMember(uploaded.id, "file", uploaded.filename, attributes_of(fields.attributes), chunking)

    async def _own(self, caller: Caller, id_: str) -> Stored:
        """One that may be changed here."""
        stored = await self._access.collection(caller, id_)
        if stored.declared:
            raise InvalidRequest(
                f"'{stored.name}' is kept in step with the configuration's files, and is changed there.",
                param="vector_store_id",
            )
        return stored

    # -- search

    async def search(self, exchange: Exchange, id_: str, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, RetrievalError, BackendError, GatewayError
        """
        assert exchange.caller is not None
        body.require("query", object)
        fields = read_struct(body, SearchFields)
        queries = [fields.query] if isinstance(fields.query, str) else fields.query
        if not 1 <= len(queries) <= MAX_QUERIES or not any(query.strip() for query in queries):
            raise InvalidRequest(f"'query' is a text, or 1 to {MAX_QUERIES} of them, and not empty.", param="query")
        with self._books.of(exchange, outlet, body.raw):
            stored = await self._access.collection(exchange.caller, id_)
            exchange.model = stored.name or stored.public_id
            settings, weights = self._ranking(exchange.caller, fields)
            await self._books.admit(exchange)
            if fields.rewrite_query:
                queries = [await self._retrieving.rewritten(exchange, [stored], query) for query in queries]
            findings = await self._retrieving.search(
                [stored], queries, settings, exchange.id, condition=fields.filters, weights=weights
            )
            told = search_object(queries, findings.found, findings.degraded)
            exchange.outcome = "complete"
            self._books.close(exchange)
            self._books.first_byte(exchange, self._clock())
            await outlet.whole(msgspec.json.encode(told), {"content-type": "application/json"})

    def _ranking(self, caller: Caller, fields: SearchFields) -> tuple[RetrievalSettings, Weights]:
        if fields.filters is not None:
            check(fields.filters)
        options = fields.ranking_options
        values: dict[str, Any] = {"top_k": fields.max_num_results, "candidates": max(50, 2 * fields.max_num_results)}
        weights = BALANCE
        if options is not None:
            values["min_score"] = options.score_threshold or 0.0
            values["rerank"] = self._ranker(caller, options.ranker)
            if options.hybrid_search is not None:
                weights = options.hybrid_search.embedding_weight, options.hybrid_search.text_weight
                if not any(weights):
                    raise InvalidRequest(
                        "one of the two weights must be above zero.", param="ranking_options.hybrid_search"
                    )
        settings, condition = asked_settings(RetrievalSettings.model_validate(values), fields.retrieval)
        if condition is not None:
            raise InvalidRequest("'filters' stands beside 'retrieval' here, not in it.", param="retrieval.filters")
        return settings, weights

    def _ranker(self, caller: Caller, name: str | None) -> str | bool:
        """`auto` is none here: which model reads the passages anew is said by its name."""
        if name is None or name in BUILT_IN_RANKERS:
            return False
        if name not in self._knowledge.rerank_names or not caller.may("backends", name):
            raise InvalidRequest(
                f"'ranker' is one of {', '.join(BUILT_IN_RANKERS)}, or a backend here that serves rerank.",
                param="ranking_options.ranker",
            )
        return name
