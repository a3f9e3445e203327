"""Relays one call to one OpenAI-speaking server and watches the bytes go by. Foreign failures become ours here.

A stream has three ends: complete (a finish_reason for every choice, or `[DONE]`), broken, or abandoned by its reader;
only the first ends the generator normally, so a cut answer never looks complete.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec

from backends import sse
from backends.base import CHAT, COMPLETIONS, Answer, Call, Event, PromptSize
from backends.errors import BackendError, BackendTimeout, BackendUnavailable, UpstreamBroken, UpstreamRefused
from backends.settings import Timeouts
from backends.transport import (
    ConnectFailed,
    ConnectionBroken,
    DeadlinePassed,
    Reply,
    Request,
    Transport,
    TransportError,
)
from backends.wire import Chunk, Usage, choices_of, read_chunk, rename_model

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
DRAIN_S = 0.5

CLIENTS_FAULT = frozenset({400, 404, 409, 413, 422, 429})
"""These keep their status and words; every other failure of an upstream is its own affair."""

CROSSING_BACK = ("retry-after", "openai-processing-ms")

TOKEN_COMMENT = b": tokens="
"""A worker puts `: tokens=<prompt>,<completion>` before each event for us; it does not go further."""

_TOKENS = re.compile(rb": tokens=(\d{1,12}),(\d{1,12})\r?\n")

_KEY = re.compile(r"\bsk-[A-Za-z0-9_\-*.]{6,}")


class Relay:
    """Implements `Backend` over one `Transport`.

    Args:
        prefix: what stands in front of `/chat/completions` on that server, `/v1` already taken off the call's path.
        headers: sent with every request; holds the authorization.
        ask_usage: request usage in streams where the client did not, and withhold it from them.
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
    ) -> None:
        self.name = name
        self._transport = transport
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"} | dict(headers)
        self._secrets = [secret for value in headers.values() if len(secret := value.removeprefix("Bearer ")) >= 8]
        self._timeouts = timeouts
        self._ask_usage = ask_usage
        self._identity = identity or name

    async def complete(self, call: Call) -> Answer:
        total_s = self._timeouts.total_s
        try:
            async with asyncio.timeout(total_s), self._reply(call, call.body.raw, accept="application/json") as reply:
                body = await self._read(reply, MAX_ANSWER_BYTES)
        except TimeoutError:
            raise BackendTimeout(self.name, "total", total_s) from None
        chunk = self._read_chunk(body)
        if not _is_text(body) or (call.path in (CHAT, COMPLETIONS) and chunk.choices is None and not chunk.failed):
            raise UpstreamBroken(self.name, "an answer without choices, or not UTF-8")
        if chunk.failed:
            raise UpstreamBroken(self.name, f"an error under status {reply.status}: {self._words(body)[0]}")
        return Answer(rename_model(body, call.model), chunk.usage, _crossing_back(reply.headers))

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        options = call.body.read("stream_options", dict[str, Any], {})
        withhold = self._ask_usage and not options.get("include_usage")
        body = call.body.replace(stream_options=options | {"include_usage": True}) if withhold else call.body
        progress = _Progress(choices_of(call.body), asyncio.get_running_loop().time())
        async with (
            self._reply(call, body.raw, accept="text/event-stream") as reply,
            aclosing(self._frames(reply)) as pieces,
        ):
            async for frames in pieces:
                event, failure = self._events(frames, progress, call.model, withhold_usage=withhold)
                if event is not None:
                    yield event
                if failure is not None:
                    raise failure
                if progress.done:
                    await self._drain(pieces)
                    return
        if not progress.complete:
            raise UpstreamBroken(
                self.name, "the stream ended before the answer did" if progress.began else "an empty stream"
            )
        yield Event(sse.DONE, last=True)

    async def count(self, call: Call) -> PromptSize | None:
        return None

    async def post(self, path: str, body: bytes) -> bytes:
        """For the few calls beside the API that a worker offers; errors as in `complete`."""
        total_s = self._timeouts.total_s
        try:
            async with asyncio.timeout(total_s), self._sent("POST", path, body, {}) as reply:
                return await self._read(reply, MAX_ANSWER_BYTES)
        except TimeoutError:
            raise BackendTimeout(self.name, "total", total_s) from None

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return None

    async def identity(self) -> str:
        return self._identity

    def status(self) -> str:
        return "ready"

    async def aclose(self) -> None:
        await self._transport.aclose()

    @asynccontextmanager
    async def _reply(self, call: Call, body: bytes, *, accept: str) -> AsyncIterator[Reply]:
        headers = {"accept": accept} | dict(call.headers)
        async with self._sent("POST", call.path.removeprefix("/v1"), body, headers) as reply:
            yield reply

    @asynccontextmanager
    async def _sent(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[Reply]:
        """An accepted request; its connection is closed on every way out. Foreign failures inside become ours."""
        try:
            reply = await self._transport.send(
                Request(method, path, {**self._headers, **headers}, body, self._timeouts)
            )
            try:
                if not 200 <= reply.status < 300:
                    raise self._refusal(reply, await self._read(reply, MAX_ERROR_BYTES, truncate=True))
                yield reply
            finally:
                await asyncio.shield(reply.aclose())
        except TransportError as exc:
            raise self._ours(exc) from exc

    def _ours(self, exc: TransportError) -> BackendError:
        match exc:
            case ConnectFailed():
                return BackendUnavailable(self.name, self._redact(str(exc)))
            case DeadlinePassed():
                return BackendTimeout(self.name, exc.phase, exc.deadline_s)
            case ConnectionBroken():
                return UpstreamBroken(self.name, self._redact(str(exc)))
            case _:
                raise AssertionError(f"a transport raised {exc!r}")

    async def _read(self, reply: Reply, limit_bytes: int, *, truncate: bool = False) -> bytes:
        pieces = bytearray()
        async for piece in reply.chunks():
            pieces += piece
            if len(pieces) > limit_bytes:
                if truncate:
                    break
                raise UpstreamBroken(self.name, f"the answer is larger than {limit_bytes} bytes")
        return bytes(pieces)

    async def _frames(self, reply: Reply) -> AsyncGenerator[list[sse.Frame], None]:
        """The frames that each piece of the body completed; what arrived together is handled together."""
        kind = reply.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
        if kind != "text/event-stream":
            start = await self._read(reply, MAX_ERROR_BYTES, truncate=True)
            raise UpstreamBroken(self.name, f"asked for a stream, got {kind}: {self._words(start)[0]}")
        reader = sse.Reader()
        async for piece in reply.chunks():
            try:
                frames = reader.feed(piece)
            except sse.FrameTooLarge as exc:
                raise UpstreamBroken(self.name, str(exc)) from None
            yield frames

    def _check_silence(self, frame: sse.Frame, progress: "_Progress") -> None:
        """Comments keep a connection open; they are no answer, so the deadlines go on through them."""
        now_s = asyncio.get_running_loop().time()
        if frame.data is not None:
            progress.last_event_s = now_s
            return
        phase, deadline_s = (
            ("idle", self._timeouts.idle_s) if progress.began else ("first_byte", self._timeouts.first_byte_s)
        )
        if now_s - progress.last_event_s > deadline_s:
            raise BackendTimeout(self.name, phase, deadline_s)

    async def _drain(self, pieces: AsyncGenerator[list[sse.Frame], None]) -> None:
        """Read the little that follows `[DONE]`, so that the connection can be used again; it is not worth a failure."""
        try:
            async with asyncio.timeout(DRAIN_S):
                async for _ in pieces:
                    pass
        except (TimeoutError, TransportError, BackendError):
            pass

    def _events(
        self, frames: list[sse.Frame], progress: "_Progress", model: str, *, withhold_usage: bool
    ) -> tuple[Event | None, BackendError | None]:
        """What goes on for frames that arrived together, and the failure behind it, if there is one."""
        events: list[Event] = []
        for frame in frames:
            try:
                self._check_silence(frame, progress)
                event = self._event(frame, progress, model, withhold_usage=withhold_usage)
            except BackendError as failure:
                return (_together(events) if events else None), failure
            if event is not None:
                events.append(event)
            if progress.done:
                break
        return (_together(events) if events else None), None

    def _event(self, frame: sse.Frame, progress: "_Progress", model: str, *, withhold_usage: bool) -> Event | None:
        """What goes on to the client for one frame; None where it is only for us."""
        if frame.data is None:
            return None  # comments are for the connection they came over
        if frame.data == b"[DONE]":
            progress.done = True
            if not progress.began:
                raise UpstreamBroken(self.name, "an empty stream")
            return Event(sse.DONE, last=True)
        chunk = self._read_chunk(frame.data)
        if chunk.failed:
            raise self._stream_error(frame.data)
        progress.see(chunk)
        raw, usage = frame.raw, chunk.usage
        if (counted := _TOKENS.match(raw)) is not None:
            raw = raw[counted.end() :]
            usage = usage or Usage(int(counted[1]), int(counted[2]))
        if withhold_usage and chunk.usage is not None and not chunk.choices:
            return Event(b"", usage)
        if chunk.model is not None and chunk.model != model:
            raw = sse.encode(rename_model(frame.data, model), event=frame.event)
        return Event(raw, usage, sum(choice.size_bytes for choice in chunk.choices or ()))

    def _read_chunk(self, data: bytes) -> Chunk:
        try:
            return read_chunk(data)
        except (ValueError, msgspec.DecodeError):
            raise UpstreamBroken(
                self.name,
                f"not a JSON object: {self._redact(data[:MAX_ERROR_BYTES].decode('utf-8', 'replace'))[:200]!r}",
            ) from None

    def _refusal(self, reply: Reply, body: bytes) -> BackendError:
        message, error = self._words(body)
        if reply.status not in CLIENTS_FAULT:
            return UpstreamBroken(self.name, f"status {reply.status}: {message}")
        return self._refused(reply.status, message, error, reply.headers.get("retry-after"))

    def _stream_error(self, data: bytes) -> BackendError:
        """An error event: the client's own fault where the engine says so, else the engine's."""
        message, error = self._words(data)
        numbers = [error[name] for name in ("code", "status") if isinstance(error.get(name), int)]
        status = numbers[0] if numbers else 0
        if status in CLIENTS_FAULT or error.get("type") == "invalid_request_error":
            return self._refused(status if status in CLIENTS_FAULT else 400, message, error, None)
        return UpstreamBroken(self.name, message)

    def _refused(self, status: Any, message: str, error: dict[str, Any], retry_after: str | None) -> UpstreamRefused:
        kind, code, param = error.get("type"), error.get("code"), error.get("param")
        return UpstreamRefused(
            self.name,
            status,
            message,
            type_=kind if isinstance(kind, str) else "invalid_request_error",
            code=code if isinstance(code, str) else None,
            param=param if isinstance(param, str) else None,
            retry_after=retry_after,
        )

    def _words(self, body: bytes) -> tuple[str, dict[str, Any]]:
        """The message of an error body and the rest of it, as far as it is one."""
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            decoded = None
        error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            return self._redact(error["message"]), error
        if isinstance(error, str):
            return self._redact(error), {}
        return self._redact(body.decode("utf-8", "replace"))[:200] or "no message", {}

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return _KEY.sub("[redacted]", text)


class _Progress:
    """How far one stream of `wanted` choices has come."""

    def __init__(self, wanted: int, now_s: float) -> None:
        self._wanted = wanted
        self.last_event_s = now_s
        self.done = False
        self.began = False
        self._open: dict[int, bool] = {}

    def see(self, chunk: Chunk) -> None:
        self.began = True
        for choice in chunk.choices or ():
            self._open[choice.index] = self._open.get(choice.index, True) and choice.finish_reason is None

    @property
    def complete(self) -> bool:
        return self.done or (len(self._open) >= self._wanted and not any(self._open.values()))


def _together(events: list[Event]) -> Event:
    """Events that arrived together, as one: a write per network read instead of one per event."""
    if len(events) == 1:
        return events[0]
    usage = next((event.usage for event in reversed(events) if event.usage is not None), None)
    raw = b"".join(event.raw for event in events)
    return Event(raw, usage, sum(event.text_bytes for event in events), events[-1].last)


def _is_text(body: bytes) -> bool:
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _crossing_back(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in CROSSING_BACK if name in headers}
