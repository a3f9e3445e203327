"""From a client's body to the calls that backends get: template, passages, and the hold on tokens, per attempt."""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec

from backends.base import CHAT, Backend, Call, PromptSize
from backends.encodings import Encodings
from backends.errors import InvalidRequest
from backends.quote import question_of
from backends.wire import Body, choices_of
from gateway.bookkeeping import BYTES_PER_TOKEN, Bookkeeping
from gateway.citing import Citing
from gateway.exchange import Exchange
from gateway.metrics import Metrics
from gateway.retrieving import EXTENSIONS, Retrieved, Retrieving
from gateway.targets import Target, Targets
from gateway.tries import Tries
from policies.errors import QuotaExceeded
from policies.prompts import apply
from policies.routing import Station
from policies.token_counts import UPSTREAM_MAX_TOKENS, closer_bound, upper_bound
from retrieval.citations import (
    Context,
    Packed,
    context_of,
    inject_into_messages,
    inject_into_prompt,
    last_user,
    pack,
    shown,
)
from retrieval.search import Found

log = logging.getLogger("chasqui")

TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")


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
    retrieved: Retrieved | None = None

    @property
    def public_messages(self) -> int:
        """At the beginning: those of the template that are the same for everybody."""
        return self.target.prompt.fixed_messages if self.target.prompt is not None else 0


class Attempt(NamedTuple):
    """What one station is asked."""

    backend: Backend
    call: Call
    citing: Citing | None


class Attempts:
    def __init__(
        self,
        backends: Mapping[str, Backend],
        targets: Targets,
        retrieving: Retrieving,
        books: Bookkeeping,
        encodings: Encodings,
        metrics: Metrics,
    ) -> None:
        self._backends = backends
        self._targets = targets
        self._retrieving = retrieving
        self._books = books
        self._encodings = encodings
        self._metrics = metrics
        self._secret = secrets.token_bytes(32)
        """Fences passages."""

    def foreseen(self, exchange: Exchange, target: Target, body: Body) -> tuple[int, int] | None:
        """Tokens of prompt and answer at most, where the body alone tells: nothing is added to it, and an upstream, which
        nobody can ask for a count, is the first to get it."""
        if target.prompt is not None or not self._books.counts_tokens(exchange):
            return None
        if target.settings.collections or "collections" in body:
            return None
        if self._backends[target.stations[0].backend].local or ("prompt" in body and exchange.path == CHAT):
            return None
        return upper_bound(len(body.raw)), answer_bound(body, target)

    async def ask(self, exchange: Exchange, target: Target, body: Body) -> Question:
        """Render the template and find the passages; the same for every attempt."""
        chat = exchange.path == CHAT
        wish = await self._retrieving.wish_of(exchange, target, body)
        body = body.without(*EXTENSIONS)
        if not chat and (target.prompt is not None or wish is not None):
            require_one_prompt(body)
        retrieved = await self._retrieving.find(exchange, wish, body) if wish is not None else None
        tries = Tries(exchange.model, self._stations(exchange, target, retrieved), retries=target.settings.retries)
        if retrieved is not None and not retrieved.tools:
            body = without_tools(body)
        return Question(target, self._render(target, body, chat=chat), tries, retrieved)

    def _stations(self, exchange: Exchange, target: Target, retrieved: Retrieved | None) -> list[Station]:
        """The caller's part of the route; passages that must stay here are shown to local engines only."""
        assert exchange.caller is not None
        stations = self._targets.stations(target, exchange.caller)
        if retrieved is None or not retrieved.local_only:
            return stations
        for station in stations:
            if not self._backends[station.backend].local:
                log.warning("%s: '%s' is local_only, so %s is not asked", exchange.id, exchange.model, station.backend)
        return [station for station in stations if self._backends[station.backend].local]

    async def prepare(self, exchange: Exchange, question: Question, station: Station) -> "Attempt":
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
        citing: Citing | None = None
        if question.retrieved is not None:
            packed = await self._packed(question, question.retrieved, backend, call, size)
            citing = _citing(call, question.retrieved, packed, backend)
            call, size = await self._with_passages(exchange, question, packed, backend, call, size)
        call = await self._held(exchange, question, backend, call, size)
        self._books.begin(exchange)
        return Attempt(backend, call, citing)

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
        wanted = self._books.counts_tokens(exchange) or (question.retrieved is not None and not backend.quotes)
        return await backend.count(call) if wanted else None

    async def _with_passages(
        self,
        exchange: Exchange,
        question: Question,
        packed: Packed,
        backend: Backend,
        call: Call,
        size: PromptSize | None,
    ) -> tuple[Call, PromptSize | None]:
        assert question.retrieved is not None
        if backend.quotes:
            self._metrics.packed(shown=len(packed.passages), left_out=len(packed.left_out), hits=0)
            return replace(call, passages=packed.passages, marks=marked(question.retrieved, call)), size
        if question.retrieved.again and not packed.passages:
            return call, size
        marks = marked(question.retrieved, call)
        context = context_of(packed.passages, secret=self._secret, cite=marks)
        self._report(exchange, packed, context)
        injected = self._injected(question, call, context)
        injected = replace(injected, passages=packed.passages)
        return injected, await backend.count(injected) if size is not None else None

    @staticmethod
    def _injected(question: Question, call: Call, context: Context) -> Call:
        if call.path != CHAT:
            return replace(
                call, body=call.body.replace(prompt=inject_into_prompt(question_of(call.body), context.text))
            )
        given = call.body.require("messages", list[dict[str, Any]])
        if last_user(given) == question.public_messages:  # nothing of a client's stands before the passages
            call = replace(call, public=(question.public_messages, len(context.text)))
        return replace(call, body=call.body.replace(messages=inject_into_messages(given, context.text)))

    def _report(self, exchange: Exchange, packed: Packed, context: Context) -> None:
        self._metrics.packed(shown=len(packed.passages), left_out=len(packed.left_out), hits=context.hits)
        if packed.left_out:
            log.info("%s: passages %s did not fit into the model's window", exchange.id, list(packed.left_out))
        if context.hits:
            log.warning("%s: passages hold %d control tokens or played turns, made plain", exchange.id, context.hits)

    @staticmethod
    async def _packed(
        question: Question, retrieved: Retrieved, backend: Backend, call: Call, size: PromptSize | None
    ) -> Packed:
        """What fits beside the prompt and the answer, as this backend counts."""
        room = retrieved.wish.settings.max_context_tokens
        if size is not None:
            answer = max_tokens_of(call.body) or question.target.settings.default_max_tokens or size.context_tokens // 4
            room = min(room, size.context_tokens - size.prompt_tokens - answer)
        found = retrieved.found
        counts = await backend.count_texts([shown(one) for one in found]) if found and not backend.quotes else None
        counts = counts or [guessed_tokens(one) for one in found]
        tokens = {id(one): count for one, count in zip(found, counts, strict=True)}
        return pack(found, budget_tokens=room, count=lambda one: tokens[id(one)])

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


def guessed_tokens(one: Found) -> int:
    """Of a passage, from what the embedding model counted for its chunk."""
    return one.chunk.tokens * -(-len(one.text) // max(1, len(one.chunk.text))) + len(one.chunk.source) // 2


def without_tools(body: Body) -> Body:
    """For passages that must not have a tool called.

    Raises:
        InvalidRequest: the client insists on a call.
    """
    choice: Any = body.read("tool_choice", object)
    if choice not in (None, "none", "auto"):
        raise InvalidRequest("the documents of this model take no tools; leave 'tool_choice' out.", param="tool_choice")
    return body.without(*TOOL_FIELDS)


def marked(retrieved: Retrieved, call: Call) -> bool:
    """Whether the answer may hold markers."""
    return retrieved.wish.settings.citations != "none" and free_text(call.body)


def _citing(call: Call, retrieved: Retrieved, packed: Packed, backend: Backend) -> Citing:
    return Citing(
        call.path,
        retrieved,
        shown=[passage.number for passage in packed.passages],
        left_out=packed.left_out,
        marks=marked(retrieved, call),
        lists=retrieved.wish.settings.citations == "sources" and not backend.quotes,
    )


def free_text(body: Body) -> bool:
    """Whether an answer may hold markers: one that keeps to a format may not."""
    form = body.read("response_format", Any)
    kind = form.get("type") if isinstance(form, dict) else None
    return kind in (None, "text") and "grammar" not in body


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
