"""What a worker serves: OpenAI's API for one model, and the few calls a gateway needs beside it. Bare ASGI.

POST /v1/chat/completions · /v1/completions · /v1/embeddings      as OpenAI
POST /tokenize {content or contents, add_special?} · /apply-template {messages} · /count {a chat or completions body}
GET  /health · /v1/models
"""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from backends import sse
from backends.asgi import BodyTooLarge, ClientGone, Receive, Send, read_body, send_json, send_start, until_gone
from backends.errors import BackendBusy, ContextLengthExceeded, InvalidRequest
from backends.llamacpp.answers import Shape, embeddings_object
from backends.llamacpp.chat_template import ChatTemplate
from backends.llamacpp.embedding_queue import EmbeddingQueue
from backends.llamacpp.generation import Generator, Step
from backends.llamacpp.merging import side_by_side
from backends.llamacpp.parameters import Wanted, read_inputs, read_messages, read_prompts, read_wanted
from backends.stream_watch import TOKEN_COMMENT
from backends.wire import Body, Usage

log = logging.getLogger("chasqui.worker")

MAX_BODY_BYTES = 256 * 1024 * 1024
"""The gateway's own limit stands in front of this one."""

MAX_SEQUENCES = 2048
"""Answers of one request."""

SCOPE = b"x-chasqui-scope"
"""Prompts of the same scope may begin where others left cells; the gateway says who shares with whom."""

Handler = Callable[[Body, Send, dict[bytes, bytes]], Awaitable[None]]


class WorkerApi:
    """
    Args:
        key: every request must carry it as a bearer, `/health` excepted.
        serves: chat or embeddings; the other's paths are refused with words.
    """

    def __init__(self, engine: Generator | EmbeddingQueue, *, name: str, key: str, serves: str) -> None:
        self._thread = engine
        self._engine = engine.engine
        self._name = name
        self._key = f"Bearer {key}".encode()
        self._serves = serves
        info = self._engine.info
        self._info = info
        self._template: ChatTemplate | None = None
        if serves == "chat":
            self._template = ChatTemplate(
                info.chat_template, control_tokens=info.control_tokens, bos=info.bos, eos=info.eos
            )
        self._handlers: dict[str, Handler] = {
            "/chat/completions": self._chat,
            "/completions": self._completions,
            "/embeddings": self._embeddings,
            "/tokenize": self._tokenise,
            "/apply-template": self._apply_template,
            "/count": self._count,
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        path = scope["path"].removeprefix("/v1")
        if path == "/health":
            await send_json(send, 200, {"status": "ok"})
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._key):
            await send_error(
                send, 401, "this worker needs its key", type_="authentication_error", code="invalid_api_key"
            )
        elif path == "/models" and scope["method"] == "GET":
            await send_json(send, 200, {"object": "list", "data": [self._model_object()]})
        elif path not in self._handlers:
            await send_error(send, 404, f"there is no {scope['path'][:200]} here", code="not_found")
        elif scope["method"] != "POST":
            await send_error(send, 405, f"{scope['path']} takes POST", code="method_not_allowed")
        else:
            await self._answer(self._handlers[path], headers, scope, receive, send)

    async def _answer(
        self, handler: Handler, headers: dict[bytes, bytes], scope: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        try:
            body = Body(await read_body(receive, limit_bytes=MAX_BODY_BYTES))
            await until_gone(scope, handler(body, send, headers))
        except InvalidRequest as exc:
            await send_error(send, 400, str(exc), param=exc.param, code=exc.code)
        except BackendBusy as exc:
            head = {"retry-after": f"{exc.retry_after_s:.0f}"}
            await send_error(send, 429, str(exc), type_="rate_limit_error", code="server_busy", headers=head)
        except RuntimeError as exc:  # the engine failed at this request; the next one may be fine
            log.exception("the engine failed")
            await send_error(send, 500, str(exc), type_="server_error", code="internal_error")
        except BodyTooLarge as exc:
            await send_error(send, 413, str(exc), code="request_too_large")
        except ClientGone:
            pass

    async def _chat(self, body: Body, send: Send, headers: dict[bytes, bytes]) -> None:
        self._require("chat")
        wanted = read_wanted(body, vocabulary=self._info.vocabulary, legacy=False)
        prompt = await asyncio.to_thread(self._chat_prompt, body)  # a long one would hold up all streams
        await self._generate([prompt], wanted, self._shape(body, "chatcmpl", wanted), send, headers)

    async def _completions(self, body: Body, send: Send, headers: dict[bytes, bytes]) -> None:
        self._require("chat")
        wanted = read_wanted(body, vocabulary=self._info.vocabulary, legacy=True)
        prompts = await asyncio.to_thread(self._legacy_prompts, body)
        await self._generate(prompts, wanted, self._shape(body, "cmpl", wanted), send, headers)

    async def _generate(
        self, prompts: list[list[int]], wanted: Wanted, shape: Shape, send: Send, headers: dict[bytes, bytes]
    ) -> None:
        if len(prompts) * wanted.choices > MAX_SEQUENCES:
            raise InvalidRequest(f"prompts times 'n' may be {MAX_SEQUENCES} at most.", param="n")
        limits = [self._max_tokens(prompt, wanted, shape) for prompt in prompts]
        scope = headers.get(SCOPE, b"").decode("latin-1")
        sequences = [
            self._sequence(prompt, limit, wanted, place * wanted.choices + choice, scope)
            for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
            for choice in range(wanted.choices)
        ]
        prompt_tokens = sum(map(len, prompts))
        if not wanted.stream:
            await self._send_whole(sequences, prompt_tokens, shape, send)
            return
        counted = b"x-chasqui-tokens" in headers
        async with aclosing(self._events(sequences, prompt_tokens, wanted, shape)) as events:
            first = await anext(events)  # before the head: a full queue or a failing engine is still a status
            await send_start(send, 200, {"content-type": "text/event-stream", "cache-control": "no-store"})
            await _send_piece(send, _frame(*first, counted=counted))
            await self._send_rest(events, send, counted=counted)

    async def _send_rest(
        self, events: AsyncGenerator[tuple[dict[str, Any], Usage], None], send: Send, *, counted: bool
    ) -> None:
        try:
            async for chunk, usage in events:
                await _send_piece(send, _frame(chunk, usage, counted=counted))
            await _send_piece(send, sse.DONE, last=True)
        except RuntimeError as exc:  # the engine failed in the middle: the head is out, so the failure is an event
            log.exception("generation failed")
            failure = error_object(str(exc), "server_error", None, "internal_error")
            await _send_piece(send, sse.encode(msgspec.json.encode(failure)), last=True)

    async def _events(
        self, sequences: list[AsyncGenerator[Step, None]], prompt_tokens: int, wanted: Wanted, shape: Shape
    ) -> AsyncGenerator[tuple[dict[str, Any], Usage], None]:
        usage = Usage(prompt_tokens, 0)
        opened: set[int] = set()
        async with aclosing(side_by_side(sequences, at_once=self._at_once)) as steps:
            async for index, step in steps:
                usage = plus(usage, step)
                if index not in opened and (role := shape.role_chunk(index)) is not None:
                    yield role, usage
                opened.add(index)
                if step.text or (step.tokens and not step.finish):
                    yield shape.text_chunk(index, step.text), usage
                if step.finish:
                    yield shape.finish_chunk(index, step.finish), usage
        if wanted.include_usage:
            yield shape.usage_chunk(usage), usage

    async def _send_whole(
        self, sequences: list[AsyncGenerator[Step, None]], prompt_tokens: int, shape: Shape, send: Send
    ) -> None:
        texts, finishes, usage = [""] * len(sequences), ["stop"] * len(sequences), Usage(prompt_tokens, 0)
        async with aclosing(side_by_side(sequences, at_once=self._at_once)) as steps:
            async for index, step in steps:
                texts[index] += step.text
                usage = plus(usage, step)
                finishes[index] = step.finish or finishes[index]
        choices = list(zip(texts, finishes, strict=True))
        await send_json(send, 200, shape.whole(choices, usage))

    def _sequence(
        self, prompt: list[int], max_tokens: int, wanted: Wanted, index: int, scope: str
    ) -> AsyncGenerator[Step, None]:
        assert isinstance(self._thread, Generator)
        sampling = wanted.sampling_of(index)
        return self._thread.generate(prompt, sampling, stops=wanted.stops, max_tokens=max_tokens, scope=scope)

    @property
    def _at_once(self) -> int:
        """Of the sequences of one request: those of others must get their turn, too."""
        return self._thread.slots if isinstance(self._thread, Generator) else 1

    async def _embeddings(self, body: Body, send: Send, _: dict[bytes, bytes]) -> None:
        self._require("embeddings")
        encoding = body.read("encoding_format", str, "float")
        if encoding not in ("float", "base64"):
            raise InvalidRequest("'encoding_format' is float or base64.", param="encoding_format")
        dimensions = body.read("dimensions", int, self._info.dimensions)
        if dimensions != self._info.dimensions:
            words = f"this model gives vectors of {self._info.dimensions} dimensions and cannot shorten them to {dimensions}."
            raise InvalidRequest(words, param="dimensions")
        inputs = await asyncio.to_thread(self._embedding_inputs, body)
        assert isinstance(self._thread, EmbeddingQueue)
        vectors = await self._thread.embed(inputs)
        model = body.read("model", str, self._name)
        answer = embeddings_object(
            vectors, model=model, base64=encoding == "base64", tokens=[len(item) for item in inputs]
        )
        await send_json(send, 200, answer)

    def _embedding_inputs(self, body: Body) -> list[list[int]]:
        return [self._embedding_tokens(item) for item in read_inputs(body, "input", vocabulary=self._info.vocabulary)]

    def _embedding_tokens(self, item: str | list[int]) -> list[int]:
        engine = self._engine
        tokens = engine.tokenise(item, add_special=True, parse_special=False) if isinstance(item, str) else item
        if len(tokens) > engine.batch_tokens:
            raise ContextLengthExceeded(context_tokens=engine.batch_tokens, prompt_tokens=len(tokens), param="input")
        return tokens

    async def _tokenise(self, body: Body, send: Send, _: dict[bytes, bytes]) -> None:
        """`content`: its tokens. `contents`: how many each of them has."""
        tokenise = partial(
            self._engine.tokenise, add_special=body.read("add_special", bool, False), parse_special=False
        )
        if "contents" in body:
            counts = [len(tokenise(text)) for text in body.require("contents", list[str])]
            await send_json(send, 200, {"counts": counts})
        else:
            await send_json(send, 200, {"tokens": tokenise(body.require("content", str))})

    async def _apply_template(self, body: Body, send: Send, _: dict[bytes, bytes]) -> None:
        self._require("chat")
        assert self._template is not None
        pieces = self._template.render(read_messages(body))
        await send_json(send, 200, {"prompt": "".join(piece.text for piece in pieces)})

    async def _count(self, body: Body, send: Send, _: dict[bytes, bytes]) -> None:
        """Size of the prompt that this body would have, in tokens; several prompts add up."""
        if self._serves == "embeddings":
            prompts = await asyncio.to_thread(self._embedding_inputs, body)
        elif "messages" in body:
            prompts = [await asyncio.to_thread(self._chat_prompt, body)]
        else:
            prompts = await asyncio.to_thread(self._legacy_prompts, body)
        size = {"prompt_tokens": sum(map(len, prompts)), "context_tokens": self._info.context_tokens}
        await send_json(send, 200, size)

    def _chat_prompt(self, body: Body) -> list[int]:
        assert self._template is not None
        engine, tokens = self._engine, []
        for number, piece in enumerate(self._template.render(read_messages(body))):
            add_special = number == 0 and not piece.text.startswith(self._info.bos or "\0")
            tokens += engine.tokenise(piece.text, add_special=add_special, parse_special=piece.trusted)
        if not tokens:
            raise InvalidRequest("the messages hold no text.", param="messages")
        return tokens

    def _legacy_prompts(self, body: Body) -> list[list[int]]:
        engine = self._engine
        prompts = [
            engine.tokenise(prompt, add_special=True, parse_special=True) if isinstance(prompt, str) else prompt
            for prompt in read_prompts(body, vocabulary=self._info.vocabulary)
        ]
        if not all(prompts):
            raise InvalidRequest("'prompt' is empty, and this model has no token to begin with.", param="prompt")
        return prompts

    def _max_tokens(self, prompt: list[int], wanted: Wanted, shape: Shape) -> int:
        """What the answer may have, in tokens; everything that fits where the client named no limit."""
        room = self._info.context_tokens - len(prompt)
        asked = wanted.max_tokens
        if room < 1 or (asked is not None and asked > room):
            param = "prompt" if shape.legacy else "messages"
            raise ContextLengthExceeded(
                context_tokens=self._info.context_tokens, prompt_tokens=len(prompt), max_tokens=asked or 0, param=param
            )
        return room if asked is None else asked

    def _shape(self, body: Body, prefix: str, wanted: Wanted) -> Shape:
        return Shape(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=body.read("model", str, self._name),
            legacy=prefix == "cmpl",
            include_usage=wanted.include_usage,
        )

    def _require(self, serves: str) -> None:
        if self._serves != serves:
            raise InvalidRequest(f"this model serves {self._serves}, not {serves}.", param="model")

    def _model_object(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": 0,
            "owned_by": "chasqui",
            "description": self._info.description,
            "context_tokens": self._info.context_tokens,
        }


def plus(usage: Usage, step: Step) -> Usage:
    details = usage.prompt_tokens_details
    if step.shared:
        details = {"cached_tokens": usage.cached_tokens + step.shared}
    return Usage(usage.prompt_tokens, usage.completion_tokens + step.tokens, details)


def _frame(chunk: dict[str, Any], usage: Usage, *, counted: bool) -> bytes:
    comment = b""
    if counted:
        cached = b",%d" % usage.cached_tokens if usage.cached_tokens else b""
        comment = TOKEN_COMMENT + b"%d,%d%b\n" % (usage.prompt_tokens, usage.completion_tokens, cached)
    return comment + sse.encode(msgspec.json.encode(chunk))


async def _send_piece(send: Send, piece: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": not last})


def error_object(message: str, type_: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


async def send_error(
    send: Send,
    status: int,
    message: str,
    *,
    type_: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> None:
    await send_json(send, status, error_object(message, type_, param, code), headers)
