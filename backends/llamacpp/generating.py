"""Chat and completions of a worker: from the body to the answer, whole or as a stream."""

import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from backends import sse
from backends.asgi import Send, send_json, send_start
from backends.errors import ContextLengthExceeded, InvalidRequest
from backends.llamacpp.answers import Choice, Shape
from backends.llamacpp.aside import aside
from backends.llamacpp.generation import Generator
from backends.llamacpp.grammar_check import GrammarCheck
from backends.llamacpp.merging import side_by_side
from backends.llamacpp.parameters import Wanted, read_wanted
from backends.llamacpp.prompts import Prompts
from backends.llamacpp.scope import PUBLIC_HEADER, SCOPE_HEADER
from backends.llamacpp.sequences import Ask
from backends.llamacpp.speaking import Spoken, Tally, speak
from backends.llamacpp.tool_formats import tool_grammar
from backends.stream_watch import TOKEN_COMMENT
from backends.wire import Body, Usage

log = logging.getLogger("chasqui.worker")

MAX_SEQUENCES = 2048
"""Answers of one request."""

SCOPE, PUBLIC = SCOPE_HEADER.encode(), PUBLIC_HEADER.encode()

Headers = dict[bytes, bytes]
Answering = AsyncGenerator[tuple[dict[str, Any], Usage], None]


class Order(NamedTuple):
    """What a request comes down to."""

    asks: list[Ask]
    wanted: Wanted
    shape: Shape
    prompt_tokens: int


class Generating:
    def __init__(self, generator: Generator, *, name: str, share: bool) -> None:
        self._generator = generator
        self._info = generator.engine.info
        self._name = name
        self._share = share
        self._grammars = GrammarCheck()
        self.prompts = Prompts(generator.engine)

    async def chat(self, body: Body, send: Send, headers: Headers) -> None:
        await self._answer(body, send, headers, legacy=False)

    async def completions(self, body: Body, send: Send, headers: Headers) -> None:
        await self._answer(body, send, headers, legacy=True)

    async def apply_template(self, body: Body, send: Send, _: Headers) -> None:
        prompt = await aside(len(body.raw), lambda: self.prompts.text(body))
        await send_json(send, 200, {"prompt": prompt})

    async def count(self, body: Body, send: Send, _: Headers) -> None:
        """Size of the prompt that this body would have, in tokens; several prompts add up."""
        prompts = await aside(len(body.raw), lambda: self.prompts.of(body))
        size = {"prompt_tokens": sum(map(len, prompts)), "context_tokens": self._info.context_tokens}
        await send_json(send, 200, size)

    async def aclose(self) -> None:
        await self._grammars.aclose()

    async def _answer(self, body: Body, send: Send, headers: Headers, *, legacy: bool) -> None:
        order = await self._order(body, headers, legacy=legacy)
        speakers = [speak(self._generator, ask, order.wanted.tools, self.prompts.form) for ask in order.asks]
        if order.wanted.stream:
            await self._send_stream(order, speakers, send, counted=b"x-chasqui-tokens" in headers)
        else:
            await self._send_whole(order, speakers, send)

    async def _order(self, body: Body, headers: Headers, *, legacy: bool) -> Order:
        """
        Raises:
            InvalidRequest
        """
        wanted = read_wanted(body, vocabulary=self._info.vocabulary, legacy=legacy)
        prompts = await aside(len(body.raw), lambda: self.prompts.legacy(body) if legacy else [self.prompts.chat(body)])
        if len(prompts) * wanted.choices > MAX_SEQUENCES:
            raise InvalidRequest(f"prompts times 'n' may be {MAX_SEQUENCES} at most.", param="n")
        limits = [self._max_tokens(prompt, wanted, "prompt" if legacy else "messages") for prompt in prompts]
        public = await self._public_tokens(body, prompts[0], headers)
        grammar = await self._grammar(wanted)
        scope = self._scope(headers)
        asks = [
            Ask(
                prompt,
                wanted.sampling_of(place * wanted.choices + choice),
                limit,
                wanted.stops,
                scope,
                public,
                grammar,
                wanted.top_logprobs,
                self._shown(wanted),
            )
            for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
            for choice in range(wanted.choices)
        ]
        return Order(asks, wanted, self._shape(body, wanted, legacy=legacy), sum(map(len, prompts)))

    def _scope(self, headers: Headers) -> str:
        """Who does not say whom it asks for shares with nobody, unless all clients of this worker are one."""
        given = headers.get(SCOPE)
        return given.decode("latin-1") if given is not None else "all" if self._share else uuid.uuid4().hex

    async def _grammar(self, wanted: Wanted) -> str | None:
        tools, source = wanted.tools, wanted.format
        if tools is not None and (tools.forced or (source is not None and source.kind == "schema")):
            source = tool_grammar(self.prompts.form, tools, self._tokens_with_meaning, None if tools.forced else source)
        return await self._grammars.grammar(source) if source is not None else None

    @property
    def _tokens_with_meaning(self) -> dict[str, int]:
        known = self._info.special_tokens
        return {mark: known[mark] for mark in self.prompts.form.marks if mark in known}

    def _shown(self, wanted: Wanted) -> frozenset[int]:
        return frozenset(self._tokens_with_meaning.values()) if wanted.tools is not None else frozenset()

    async def _public_tokens(self, body: Body, prompt: list[int], headers: Headers) -> int:
        messages, _, chars = headers.get(PUBLIC, b"").partition(b",")
        if not messages.isdigit() or not chars.isdigit() or "messages" not in body:
            return 0
        return await aside(
            len(body.raw), lambda: self.prompts.public_tokens(body, prompt, messages=int(messages), chars=int(chars))
        )

    def _max_tokens(self, prompt: list[int], wanted: Wanted, param: str) -> int:
        """What the answer may have, in tokens; everything that fits where the client named no limit."""
        room = self._info.context_tokens - len(prompt)
        asked = wanted.max_tokens
        if room < 1 or (asked is not None and asked > room):
            raise ContextLengthExceeded(
                context_tokens=self._info.context_tokens, prompt_tokens=len(prompt), max_tokens=asked or 0, param=param
            )
        return room if asked is None else asked

    def _shape(self, body: Body, wanted: Wanted, *, legacy: bool) -> Shape:
        return Shape(
            id=f"{'cmpl' if legacy else 'chatcmpl'}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.read("model", str, self._name),
            legacy=legacy,
            include_usage=wanted.include_usage,
            logprobs=wanted.top_logprobs is not None,
        )

    async def _send_whole(self, order: Order, speakers: list[AsyncGenerator[Spoken, None]], send: Send) -> None:
        choices, tally = [Choice() for _ in speakers], Tally(order.prompt_tokens, order.wanted.choices)
        async with aclosing(side_by_side(speakers, at_once=self._generator.slots)) as heard:
            async for index, spoken in heard:
                choices[index].add(spoken)
                tally.add(index, spoken)
        await send_json(send, 200, order.shape.whole(choices, tally.usage))

    async def _send_stream(
        self, order: Order, speakers: list[AsyncGenerator[Spoken, None]], send: Send, *, counted: bool
    ) -> None:
        async with aclosing(self._chunks(order, speakers)) as chunks:
            first = await anext(chunks)  # before the head: a full queue or a failing engine is still a status
            await send_start(send, 200, {"content-type": "text/event-stream", "cache-control": "no-store"})
            await send_piece(send, _frame(*first, counted=counted))
            try:
                async for chunk, usage in chunks:
                    await send_piece(send, _frame(chunk, usage, counted=counted))
                await send_piece(send, sse.DONE, last=True)
            except InvalidRequest as exc:  # a grammar that cannot be followed any further
                await _send_failure(send, error_object(str(exc), "invalid_request_error", exc.param, exc.code))
            except Exception as exc:
                log.exception("generation failed")
                await _send_failure(send, error_object(str(exc), "server_error", None, "internal_error"))

    async def _chunks(self, order: Order, speakers: list[AsyncGenerator[Spoken, None]]) -> Answering:
        tally, shape = Tally(order.prompt_tokens, order.wanted.choices), order.shape
        opened: set[int] = set()
        async with aclosing(side_by_side(speakers, at_once=self._generator.slots)) as heard:
            async for index, spoken in heard:
                usage = tally.add(index, spoken)
                if index not in opened and (role := shape.role_chunk(index)) is not None:
                    yield role, usage
                opened.add(index)
                for chunk in shape.chunks(index, spoken):
                    yield chunk, usage
                if spoken.finish:
                    yield shape.finish_chunk(index, spoken), usage
        if order.wanted.include_usage:
            yield shape.usage_chunk(tally.usage), tally.usage


def _frame(chunk: dict[str, Any], usage: Usage, *, counted: bool) -> bytes:
    comment = b""
    if counted:
        cached = b",%d" % usage.cached_tokens if usage.cached_tokens else b""
        comment = TOKEN_COMMENT + b"%d,%d%b\n" % (usage.prompt_tokens, usage.completion_tokens, cached)
    return comment + sse.encode(msgspec.json.encode(chunk))


async def send_piece(send: Send, piece: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": not last})


async def _send_failure(send: Send, failure: dict[str, Any]) -> None:
    await send_piece(send, sse.encode(msgspec.json.encode(failure)), last=True)


def error_object(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}
