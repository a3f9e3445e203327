"""From a client's body to the calls that backends get: template, passages, and the hold on tokens, per attempt."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from backends.base import CHAT, Backend, Call, PromptSize
from backends.encodings import Encodings
from backends.errors import InvalidRequest
from backends.quote import question_of
from backends.wire import Body, choices_of
from gateway.bookkeeping import BYTES_PER_TOKEN, Bookkeeping
from gateway.exchange import Exchange
from gateway.targets import Target, Targets
from gateway.tries import Tries
from policies.errors import QuotaExceeded
from policies.prompts import apply
from policies.routing import Station
from policies.token_counts import UPSTREAM_MAX_TOKENS, closer_bound, upper_bound
from retrieval.citations import context_of, inject_into_messages, inject_into_prompt, last_user, pack
from retrieval.search import Found, Searcher
from retrieval.settings import CollectionSettings, RetrievalSettings

log = logging.getLogger("chasqui")

EXTENSIONS = ("collections", "retrieval", "include")
"""Fields of ours that this version refuses by name instead of handing them to a provider that knows nothing of them."""


class PromptCall(msgspec.Struct, forbid_unknown_fields=True):
    """`prompt` in a chat body: which template, and what to fill in."""

    id: str | None = None
    version: int | str | None = None
    variables: dict[str, Any] = {}


@dataclass(slots=True)
class Question:
    """One request, ready to be asked of any of its stations."""

    target: Target
    body: Body
    """The client's, with the template applied and our own fields taken out."""
    tries: Tries
    found: Sequence[Found] = ()

    @property
    def public_messages(self) -> int:
        """At the beginning: those of the template that are the same for everybody."""
        return self.target.prompt.fixed_messages if self.target.prompt is not None else 0


class Attempts:
    def __init__(
        self,
        backends: Mapping[str, Backend],
        targets: Targets,
        searchers: Mapping[str, Searcher],
        collections: Mapping[str, CollectionSettings],
        books: Bookkeeping,
        encodings: Encodings,
    ) -> None:
        self._backends = backends
        self._targets = targets
        self._searchers = searchers
        self._collections = collections
        self._books = books
        self._encodings = encodings

    def foreseen(self, exchange: Exchange, target: Target, body: Body) -> tuple[int, int] | None:
        """Tokens of prompt and answer at most, where the body alone tells: nothing is added to it, and an upstream, which
        nobody can ask for a count, is the first to get it."""
        if target.prompt is not None or target.settings.collections or not self._books.counts_tokens(exchange):
            return None
        if self._backends[target.stations[0].backend].local or ("prompt" in body and exchange.path == CHAT):
            return None
        return upper_bound(len(body.raw)), answer_bound(body, target)

    async def ask(self, exchange: Exchange, target: Target, body: Body) -> Question:
        """Render the template and find the passages; the same for every attempt."""
        chat = exchange.path == CHAT
        refuse_extensions(body)
        if not chat and (target.prompt is not None or target.settings.collections):
            require_one_prompt(body)
        tries = Tries(exchange.model, self._stations(exchange, target), retries=target.settings.retries)
        found = await self._search(exchange, target, body)
        rendered = self._render(target, body, chat=chat)
        return Question(target, rendered, tries, found)

    def _stations(self, exchange: Exchange, target: Target) -> list[Station]:
        """The caller's part of the route; passages that must stay here are shown to local engines only."""
        assert exchange.caller is not None
        stations = self._targets.stations(target, exchange.caller)
        if not any(self._collections[name].local_only for name in target.settings.collections):
            return stations
        for station in stations:
            if not self._backends[station.backend].local:
                log.warning("%s: '%s' is local_only, so %s is not asked", exchange.id, exchange.model, station.backend)
        return [station for station in stations if self._backends[station.backend].local]

    async def prepare(self, exchange: Exchange, question: Question, station: Station) -> tuple[Backend, Call]:
        """The call for one station: named as that backend names it, with passages that fit, and tokens held for it.

        Raises:
            QuotaExceeded, BackendError, StoreUnavailable
        """
        backend = self._backends[station.backend]
        body = question.body if station.model == exchange.model else question.body.replace(model=station.model)
        assert exchange.caller is not None
        caller = exchange.caller
        call = Call(
            exchange.path,
            body,
            exchange.id,
            exchange.model,
            caller=caller.key_id,
            role=caller.role.name,
            headers=exchange.crossing,
            public=(question.public_messages, 0),
            meter=exchange.meter,
        )
        exchange.prompt_tokens = len(body.raw) // BYTES_PER_TOKEN
        size = await self._size(exchange, question, backend, call)
        if question.found:
            call, size = await self._with_passages(question, backend, call, size)
        call = await self._held(exchange, question, backend, call, size)
        self._books.begin(exchange)
        return backend, call

    async def _search(self, exchange: Exchange, target: Target, body: Body) -> list[Found]:
        """For the client's own last words. A turn that ends in tool results goes on with what was found before."""
        if not target.settings.collections or _ends_in_tool_result(body):
            return []
        query, settings = question_of(body), target.settings.retrieval
        if not query.strip():
            raise InvalidRequest("the last user message holds no text to search the documents for.", param="messages")
        exchange.retrieval = f"ret_{exchange.id.removeprefix('req_')}"
        found: list[Found] = []
        for name in target.settings.collections:
            found += await self._searchers[name].search(query, settings, request_id=exchange.id)
        if len(target.settings.collections) > 1:
            found.sort(key=lambda one: -one.score)  # each ranking is fused in itself; only the cosine compares across
        return found[: settings.top_k]

    def _render(self, target: Target, body: Body, *, chat: bool) -> Body:
        given = body.read("prompt", PromptCall) if chat else None
        body = body.without("prompt") if chat else body
        if target.prompt is None:
            if given is not None:
                raise InvalidRequest(
                    f"the model '{target.settings.name}' has no prompt template to fill in.", param="prompt"
                )
            return body
        check_prompt_call(given, target)
        messages = target.prompt.render(question_of(body), given.variables if given else {})
        defaults = {name: value for name, value in target.prompt.params.items() if name not in body}
        if chat:
            return body.replace(messages=apply(body.require("messages", list[dict[str, Any]]), messages), **defaults)
        return body.replace(prompt="\n\n".join(message["content"] for message in messages), **defaults)

    async def _size(self, exchange: Exchange, question: Question, backend: Backend, call: Call) -> PromptSize | None:
        """Exact where the backend can count, and only where somebody needs it."""
        wanted = self._books.counts_tokens(exchange) or (question.found and not backend.quotes)
        return await backend.count(call) if wanted else None

    async def _with_passages(
        self, question: Question, backend: Backend, call: Call, size: PromptSize | None
    ) -> tuple[Call, PromptSize | None]:
        settings: RetrievalSettings = question.target.settings.retrieval
        room = settings.max_context_tokens
        if size is not None:
            answer = max_tokens_of(call.body) or question.target.settings.default_max_tokens or size.context_tokens // 4
            room = min(room, size.context_tokens - size.prompt_tokens - answer)
        texts = [f"{one.chunk.source}\n{one.chunk.text}" for one in question.found]
        counts = await backend.count_texts(texts) or [
            one.chunk.tokens + len(one.chunk.source) // 2 for one in question.found
        ]
        tokens = dict(zip((one.chunk.id for one in question.found), counts, strict=True))
        packed = pack(question.found, budget_tokens=room, count=lambda one: tokens[one.chunk.id])
        if backend.quotes:
            return replace(call, passages=packed.passages), size
        if call.path == CHAT:
            given = call.body.require("messages", list[dict[str, Any]])
            body = call.body.replace(messages=inject_into_messages(given, packed.passages))
            if last_user(given) == question.public_messages:  # nothing of a client's stands before the passages
                call = replace(call, public=(question.public_messages, len(context_of(packed.passages))))
        else:
            body = call.body.replace(prompt=inject_into_prompt(question_of(call.body), packed.passages))
        injected = replace(call, body=body, passages=packed.passages)
        return injected, await backend.count(injected) if size is not None else None

    async def _held(
        self, exchange: Exchange, question: Question, backend: Backend, call: Call, size: PromptSize | None
    ) -> Call:
        """Hold prompt and longest answer. A local model is told to stop where the hold ends, so it never exceeds it."""
        choices = choices_of(call.body)
        asked = max_tokens_of(call.body)
        default = question.target.settings.default_max_tokens
        if backend.local and not backend.quotes:
            await self._books.hold_work(exchange, backend.name)
            if asked is None and default is not None:
                call = replace(call, body=call.body.replace(max_tokens=default))
                asked = default
        if not self._books.counts_tokens(exchange):
            return call
        if size is not None:
            exchange.prompt_tokens = size.prompt_tokens
            answer = asked if asked is not None else max(0, size.context_tokens - size.prompt_tokens)
            await self._books.hold(exchange, size.prompt_tokens, answer * choices)
        elif not backend.quotes:
            await self._hold_bounded(exchange, call, answer_bound(call.body, question.target))
        return call

    async def _hold_bounded(self, exchange: Exchange, call: Call, answer_tokens: int) -> None:
        raw = call.body.raw
        try:
            await self._books.hold(exchange, upper_bound(len(raw)), answer_tokens)
        except QuotaExceeded:
            exchange.prompt_tokens = await closer_bound(raw, self._encodings)
            await self._books.hold(exchange, exchange.prompt_tokens, answer_tokens)


def answer_bound(body: Body, target: Target) -> int:
    """Tokens that an upstream may answer with, all choices together."""
    asked = max_tokens_of(body)
    return (asked if asked is not None else target.settings.default_max_tokens or UPSTREAM_MAX_TOKENS) * choices_of(
        body
    )


def refuse_extensions(body: Body) -> None:
    for name in EXTENSIONS:
        if name in body:
            raise InvalidRequest(
                f"'{name}' is planned but not built in this version; ask a model that has a collection.", param=name
            )


def require_one_prompt(body: Body) -> None:
    if not isinstance(body.read("prompt", Any), str):
        raise InvalidRequest("a model with a template or a collection takes one prompt, as a string.", param="prompt")


def check_prompt_call(given: PromptCall | None, target: Target) -> None:
    if given is None or target.prompt is None:
        return
    if given.id not in (None, target.prompt.name):
        raise InvalidRequest(
            f"the model '{target.settings.name}' uses the prompt '{target.prompt.name}'.", param="prompt.id"
        )
    if given.version is not None and str(given.version) != str(target.prompt.version):
        raise InvalidRequest(
            f"the prompt '{target.prompt.name}' has version {target.prompt.version} only.", param="prompt.version"
        )


def max_tokens_of(body: Body) -> int | None:
    """What the client allows an answer, per choice, by the larger of two names; a limit below zero is none, as some engines read it.

    Legacy completions without it get OpenAI's sixteen.
    """
    given = [value for name in ("max_completion_tokens", "max_tokens") if (value := body.read(name, int)) is not None]
    if any(value < 0 for value in given):
        return None
    return max(given, default=16 if "messages" not in body else None)


def _ends_in_tool_result(body: Body) -> bool:
    messages = body.read("messages", list[dict[str, Any]], [])
    return bool(messages) and messages[-1].get("role") == "tool"
