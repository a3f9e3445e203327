"""Relays one call to one OpenAI-speaking server. Foreign failures become ours here.

A stream has three ends: complete (a finish_reason for every choice, or `[DONE]`), broken, or abandoned by its reader;
only the first ends the generator normally, so a cut answer never looks complete.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from backends.base import CHAT, COMPLETIONS, Answer, Call, Event, Forward, Forwarded, PromptSize
from backends.errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    InvalidRequest,
    UpstreamBroken,
    UpstreamRefused,
)
from backends.forward_watch import ForwardWatch
from backends.keyring import REFUSALS, KeyRing
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
    Upload,
)
from backends.wire import choices_of, read_chunk, rename_model

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
DRAIN_S = 0.5

CROSSING_BACK = ("retry-after", "openai-processing-ms")
FORWARDED_BACK = (*CROSSING_BACK, "content-type", "content-length", "content-disposition")


class Site(NamedTuple):
    """Where on its server an API is."""

    prefix: str = ""
    """In front of every path; `{model}` in it becomes the model of the call."""
    query: str = ""
    """Behind every path, from the question mark on."""

    def path_of(self, call: Call) -> str:
        model = call.body.require("model", str) if "{model}" in self.prefix else ""
        return self.path_to(call.path, model)

    def path_to(self, path: str, model: str) -> str:
        if "{model}" not in self.prefix:
            return self.prefix + path.removeprefix("/v1") + self.query
        if not model.strip("."):
            raise InvalidRequest("this model's name cannot stand in an address.", param="model")
        prefix = self.prefix.replace("{model}", quote(model, safe=""))
        return prefix + path.removeprefix("/v1") + self.query


HERE = Site()


class Relay:
    """Implements `Backend` over one `Transport`.

    Args:
        keys: headers for every request, what authorizes among them; the next one takes over where one is refused.
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
        timeouts: Timeouts,
        keys: KeyRing,
        site: Site = HERE,
        ask_usage: bool = True,
        identity: str = "",
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.name = name
        self._transport = transport
        self._site = site
        self._keys = keys
        common = {"content-type": "application/json", "accept-encoding": "identity"}
        self._whole_headers = keys.added_to(common | {"accept": "application/json"})
        self._stream_headers = keys.added_to(common | {"accept": "text/event-stream"})
        sent = [value.removeprefix("Bearer ") for headers in keys.added_to({}) for value in headers.values()]
        self._refusals = Refusals(name, sent)
        self._timeouts = timeouts
        self._ask_usage = ask_usage
        self._identity = identity or name
        self._max_answer_bytes = max_answer_bytes

    async def complete(self, call: Call) -> Answer:
        status, headers, body = await self._whole(self._site.path_of(call), call.body.raw, call.headers)
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
        body = self._refusals.redact_bytes(body)
        return Answer(body, chunk.usage, self._refusals.harmless(headers, CROSSING_BACK))

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        options = call.body.read("stream_options", dict[str, Any], {})
        withhold = self._ask_usage and not options.get("include_usage")
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
            reply = await self._streaming(call, options, withhold=withhold)
            try:
                await self._check_kind(reply)
                while piece := await reply.piece(first=not watch.began):
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

    async def forward(self, call: Forward) -> Forwarded:
        """Hand a request on and its answer back. JSON is held until it is complete and valid, and of a stream of events the first
        one is awaited, so that both may fail before anything has gone out.

        Raises:
            BackendError: as in `complete` and `stream`; from `pieces`, once they have begun.
        """
        path = self._site.path_to(call.path, call.model)
        more = {"content-type": call.content_type, "accept": "*/*", **call.headers}
        began_s = asyncio.get_running_loop().time()
        try:
            reply = await self._sent(path, call.body, self._whole_headers, more, None)
            try:
                return await self._forwarded(reply, began_s)
            except BaseException:
                reply.close()
                raise
        except TransportError as exc:
            raise self._ours(exc) from exc

    async def _forwarded(self, reply: Reply, began_s: float) -> Forwarded:
        back = self._refusals.harmless(reply.headers, FORWARDED_BACK)
        if "content-encoding" in reply.headers:
            back.pop("content-length", None)  # of what was packed
        kind = reply.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
        if kind == "application/json":
            left_s = began_s + self._timeouts.total_s - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(left_s):
                    body = await self._read(reply, self._max_answer_bytes)
            except TimeoutError:
                raise BackendTimeout(self.name, "total", self._timeouts.total_s) from None
            back.pop("content-length", None)
            return Forwarded(back, self._checked(body), None, self._pieces(reply, b"", None))
        if kind == "text/html":
            start = await self._read(reply, MAX_ERROR_BYTES, truncate=True)
            raise UpstreamBroken(self.name, f"an answer in HTML: {self._refusals.words(start)[0]}")
        watch = ForwardWatch(self.name, self._refusals) if kind == "text/event-stream" else None
        first = await self._first(reply, watch)
        return Forwarded(back, None, watch, self._pieces(reply, first, watch))

    async def _first(self, reply: Reply, watch: ForwardWatch | None) -> bytes:
        """All up to the first event; of anything else, the first piece."""
        first = b""
        while piece := await reply.piece(first=True):
            first += piece
            if watch is None:
                return first
            if (failure := watch.feed(piece)) is not None:
                raise failure
            if watch.began or len(first) > MAX_ERROR_BYTES:
                return first
        if watch is not None or reply.headers.get("content-length") != "0":
            raise UpstreamBroken(self.name, "an empty answer")
        return first

    def _checked(self, body: bytes) -> bytes:
        try:
            body.decode()
            decoded = msgspec.json.decode(body)
        except (ValueError, msgspec.DecodeError, RecursionError):
            raise UpstreamBroken(self.name, f"not JSON: {self._refusals.words(body)[0]!r}") from None
        if isinstance(decoded, dict) and decoded.get("error"):
            words = self._refusals.words(body)[0]
            if set(decoded) == {"error"}:  # a `response` object has one beside other fields, null or telling
                raise UpstreamBroken(self.name, f"an error in place of an answer: {words}")
        return self._refusals.redact_bytes(body)

    async def _pieces(self, reply: Reply, first: bytes, watch: ForwardWatch | None) -> AsyncGenerator[bytes, None]:
        try:
            piece = first
            while True:
                if piece:
                    yield self._refusals.redact_bytes(piece) if watch is not None else piece
                piece = await reply.piece()
                if not piece:
                    break
                if watch is not None and (failure := watch.feed(piece)) is not None:
                    raise failure
            if watch is not None:
                watch.end()
        except TransportError as exc:
            raise self._ours(exc) from exc
        finally:
            reply.close()

    async def count(self, call: Call) -> PromptSize | None:
        return None

    async def post(self, path: str, body: bytes) -> bytes:
        """For the few calls beside the API that a worker offers; errors as in `complete`."""
        return (await self._whole(path, body, {}))[2]

    async def get(self, path: str) -> bytes:
        """For what a worker says of itself; errors as in `complete`."""
        request = Request("GET", self._site.prefix + path, self._whole_headers[self._keys.present], b"", self._timeouts)
        try:
            reply = await self._transport.send(request)
            try:
                body = await self._read(reply, self._max_answer_bytes)
            finally:
                reply.close()
        except TransportError as exc:
            raise self._ours(exc) from exc
        if not 200 <= reply.status < 300:
            raise self._refusals.of_status(reply.status, reply.headers, body[:MAX_ERROR_BYTES])
        return body

    async def probe(self, path: str, timeout_s: float) -> None:
        """Ask for a sign of life. What refuses us politely is alive, too.

        Raises:
            BackendError: there was none.
        """
        limits = Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s)
        try:
            index = self._keys.present
            reply = await self._transport.send(
                Request(
                    "GET",
                    self._site.prefix + path + self._site.query,
                    self._whole_headers[index],
                    b"",
                    limits,
                    timeout_s,
                )
            )
            reply.close()
        except TransportError as exc:
            raise self._ours(exc) from exc
        if reply.status in (401, 403) or reply.status >= 500:
            raise UpstreamBroken(self.name, f"status {reply.status} to a probe", status=reply.status)

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return None

    async def identity(self) -> str:
        return self._identity

    def status(self) -> str:
        return "ready"

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _streaming(self, call: Call, options: dict[str, Any], *, withhold: bool) -> Reply:
        """The reply to a request for a stream, with usage at its end. An upstream that knows no such option is asked without it."""
        path = self._site.path_of(call)
        body = call.body.replace(stream_options=options | {"include_usage": True}) if withhold else call.body
        try:
            return await self._sent(path, body.raw, self._stream_headers, call.headers, None)
        except UpstreamRefused as refused:
            if not withhold or refused.status not in (400, 422) or not _mentions_usage(refused):
                raise
        reply = await self._sent(path, call.body.raw, self._stream_headers, call.headers, None)
        self._ask_usage = False  # until the next start or reload
        return reply

    async def _whole(self, path: str, body: bytes, more: Mapping[str, str]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and all of the body of an accepted request. Foreign failures become ours."""
        try:
            reply = await self._sent(path, body, self._whole_headers, more, self._timeouts.total_s)
            try:
                return reply.status, reply.headers, await self._read(reply, self._max_answer_bytes)
            finally:
                reply.close()
        except TransportError as exc:
            raise self._ours(exc) from exc

    async def _sent(
        self,
        path: str,
        body: bytes | Upload,
        headers: Sequence[Mapping[str, str]],
        more: Mapping[str, str],
        total_s: float | None,
    ) -> Reply:
        """The reply to an accepted request.

        Args:
            headers: for each key of the ring.

        Raises:
            BackendError: it was not accepted, with any key.
            TransportError
        """
        failure: BackendError | None = None
        for index in self._keys.turns():
            full = {**headers[index], **more} if more else headers[index]
            reply = await self._transport.send(Request("POST", path, full, body, self._timeouts, total_s))
            if 200 <= reply.status < 300:
                return reply
            try:
                words = await self._read(reply, MAX_ERROR_BYTES, truncate=True)
                failure = self._refusals.of_status(reply.status, reply.headers, words)
            finally:
                reply.close()
            if reply.status not in REFUSALS:
                break
            self._keys.refused(index, reply.status, reply.headers.get("retry-after"))
        assert failure is not None
        raise failure

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


def _mentions_usage(refused: UpstreamRefused) -> bool:
    words = f"{refused} {refused.param or ''}"
    return "stream_options" in words or "include_usage" in words
