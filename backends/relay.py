"""Relays one call to one OpenAI-speaking server. Foreign failures become ours here.

A stream has three ends: complete (a finish_reason for every choice, or `[DONE]`), broken, or abandoned by its reader;
only the first ends the generator normally, so a cut answer never looks complete.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import msgspec

from backends.base import CHAT, COMPLETIONS, Answer, Call, Event, PromptSize
from backends.errors import BackendError, BackendTimeout, BackendUnavailable, UpstreamBroken
from backends.refusals import Refusals
from backends.settings import Timeouts
from backends.stream_watch import StreamWatch
from backends.transport import (
    ConnectFailed,
    ConnectionBroken,
    DeadlinePassed,
    Reply,
    Request,
    Transport,
    TransportError,
)
from backends.wire import choices_of, read_chunk, rename_model

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
DRAIN_S = 0.5

CROSSING_BACK = ("retry-after", "openai-processing-ms")


class Relay:
    """Implements `Backend` over one `Transport`.

    Args:
        headers: sent with every request; holds the authorization.
        ask_usage: request usage in streams where the client did not, and withhold it from them.
        max_answer_bytes: of an answer that is not streamed.
    """

    local = False
    quotes = False

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        headers: Mapping[str, str],
        timeouts: Timeouts,
        ask_usage: bool = True,
        identity: str = "",
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.name = name
        self._transport = transport
        common = {"content-type": "application/json", "accept-encoding": "identity"}
        self._whole_headers = common | {"accept": "application/json"} | dict(headers)
        self._stream_headers = common | {"accept": "text/event-stream"} | dict(headers)
        self._refusals = Refusals(name, [value.removeprefix("Bearer ") for value in headers.values()])
        self._timeouts = timeouts
        self._ask_usage = ask_usage
        self._identity = identity or name
        self._max_answer_bytes = max_answer_bytes

    async def complete(self, call: Call) -> Answer:
        path = call.path.removeprefix("/v1")
        status, headers, body = await self._whole("POST", path, call.body.raw, self._whole_headers, call.headers)
        try:
            chunk = read_chunk(body)
            body.decode()
        except (ValueError, msgspec.DecodeError):
            raise UpstreamBroken(self.name, f"not a JSON object: {self._refusals.words(body)[0]!r}") from None
        if chunk.failed:
            raise UpstreamBroken(self.name, f"an error under status {status}: {self._refusals.words(body)[0]}")
        if chunk.choices is None and call.path in (CHAT, COMPLETIONS):
            raise UpstreamBroken(self.name, "an answer without choices")
        if chunk.model is not None and chunk.model != call.model:
            body = rename_model(body, call.model)
        return Answer(body, chunk.usage, {name: headers[name] for name in CROSSING_BACK if name in headers})

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        options = call.body.read("stream_options", dict[str, Any], {})
        withhold = self._ask_usage and not options.get("include_usage")
        body = call.body.replace(stream_options=options | {"include_usage": True}) if withhold else call.body
        clock = asyncio.get_running_loop().time
        watch = StreamWatch(
            self.name,
            call.model,
            choices=choices_of(call.body),
            withhold_usage=withhold,
            timeouts=self._timeouts,
            refusals=self._refusals,
            now_s=clock(),
        )
        try:
            reply = await self._sent(
                "POST", call.path.removeprefix("/v1"), body.raw, self._stream_headers, call.headers, None
            )
            try:
                await self._check_kind(reply)
                while piece := await reply.piece():
                    event, failure = watch.feed(piece, clock())
                    if event is not None:
                        yield event
                    if failure is not None:
                        raise failure
                    if watch.done:
                        await self._drain(reply)
                        return
            finally:
                reply.close()
        except TransportError as exc:
            raise self._ours(exc) from exc
        yield watch.end()

    async def count(self, call: Call) -> PromptSize | None:
        return None

    async def post(self, path: str, body: bytes) -> bytes:
        """For the few calls beside the API that a worker offers; errors as in `complete`."""
        return (await self._whole("POST", path, body, self._whole_headers, {}))[2]

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return None

    async def identity(self) -> str:
        return self._identity

    def status(self) -> str:
        return "ready"

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _whole(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], more: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and all of the body of an accepted request. Foreign failures become ours."""
        try:
            reply = await self._sent(method, path, body, headers, more, self._timeouts.total_s)
            try:
                return reply.status, reply.headers, await self._read(reply, self._max_answer_bytes)
            finally:
                reply.close()
        except TransportError as exc:
            raise self._ours(exc) from exc

    async def _sent(
        self,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        more: Mapping[str, str],
        total_s: float | None,
    ) -> Reply:
        """The reply to an accepted request.

        Raises:
            BackendError: it was not accepted.
            TransportError
        """
        reply = await self._transport.send(
            Request(method, path, {**headers, **more} if more else headers, body, self._timeouts, total_s)
        )
        if 200 <= reply.status < 300:
            return reply
        try:
            words = await self._read(reply, MAX_ERROR_BYTES, truncate=True)
            raise self._refusals.of_status(reply.status, reply.headers, words)
        finally:
            reply.close()

    def _ours(self, exc: TransportError) -> BackendError:
        match exc:
            case ConnectFailed():
                return BackendUnavailable(self.name, self._refusals.redact(str(exc)))
            case DeadlinePassed():
                total = exc.phase == "total"
                return BackendTimeout(self.name, exc.phase, self._timeouts.total_s if total else exc.deadline_s)
            case ConnectionBroken():
                return UpstreamBroken(self.name, self._refusals.redact(str(exc)))
            case _:
                raise AssertionError(f"a transport raised {exc!r}")

    async def _read(self, reply: Reply, limit_bytes: int, *, truncate: bool = False) -> bytes:
        first = await reply.piece()
        if not first or not (piece := await reply.piece()):
            return first if len(first) <= limit_bytes else self._cut(first, limit_bytes, truncate=truncate)
        pieces = bytearray(first)
        while piece and len(pieces) <= limit_bytes:
            pieces += piece
            piece = await reply.piece()
        return (
            bytes(pieces)
            if not piece and len(pieces) <= limit_bytes
            else self._cut(pieces, limit_bytes, truncate=truncate)
        )

    def _cut(self, body: bytes | bytearray, limit_bytes: int, *, truncate: bool) -> bytes:
        if truncate:
            return bytes(body[:limit_bytes])
        raise UpstreamBroken(self.name, f"the answer is larger than {limit_bytes} bytes")

    async def _check_kind(self, reply: Reply) -> None:
        kind = reply.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            start = await self._read(reply, MAX_ERROR_BYTES, truncate=True)
            raise UpstreamBroken(self.name, f"asked for a stream, got {kind[:100]}: {self._refusals.words(start)[0]}")

    async def _drain(self, reply: Reply) -> None:
        """Read the little that follows `[DONE]`, so that the connection can be used again; it is not worth a failure."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while await reply.piece():
                    pass
        except (TimeoutError, TransportError):
            pass
