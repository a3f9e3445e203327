"""Watches the bytes of one stream go by: usage, ends, errors, the model's name. Pure; sockets and clocks are the relay's.

Most of what arrives is whole events of one line each, many at a time from a fast engine. Those are read in one go
(`_in_one_go`); whatever is out of the ordinary in a piece sends it through `_one_by_one`, which decides.
"""

import re

import msgspec

from backends import sse
from backends.base import Event
from backends.errors import BackendError, BackendTimeout, UpstreamBroken
from backends.refusals import Refusals
from backends.settings import Timeouts
from backends.wire import Chunk, Usage, read_chunk, read_chunks, rename_model

DONE_DATA = b"[DONE]"
WORDS_BYTES = 64 * 1024

TOKEN_COMMENT = b": tokens="
"""A worker puts `: tokens=<prompt>,<completion>` before each event for us; it does not go further."""

_TOKENS = re.compile(rb": tokens=(\d{1,12}),(\d{1,12})(?:,(\d{1,12}))?\r?\n")


class StreamWatch:
    """
    Args:
        model: the name the client asked for; every chunk carries it.
        choices: how many must finish before the stream is complete without `[DONE]`.
        withhold_usage: the client did not ask for usage; chunks that hold nothing else are kept back.
        now_s: on the clock of `feed`.
    """

    def __init__(
        self,
        backend: str,
        model: str,
        *,
        choices: int,
        withhold_usage: bool,
        timeouts: Timeouts,
        refusals: Refusals,
        now_s: float,
    ) -> None:
        self._backend = backend
        self._model = model
        self._wanted = choices
        self._withhold_usage = withhold_usage
        self._timeouts = timeouts
        self._refusals = refusals
        self._last_event_s = now_s
        self._reader = sse.Reader()
        self._finished: dict[int, bool] = {}
        self.began = False
        """An event that is more than a comment was seen."""
        self.done = False
        """`[DONE]` was seen."""

    def feed(self, piece: bytes, now_s: float) -> tuple[Event | None, BackendError | None]:
        """What goes on to the client for a piece of the stream, and the failure behind it, if there is one."""
        event, failure = self._watched(piece, now_s)
        if event is not None and event.raw:
            raw = self._refusals.redact_bytes(event.raw)
            event = event if raw is event.raw else event._replace(raw=raw)
        return event, failure

    def _watched(self, piece: bytes, now_s: float) -> tuple[Event | None, BackendError | None]:
        datas = self._reader.plain(piece)
        if datas is not None and (event := self._in_one_go(piece, datas)) is not None:
            self._last_event_s = now_s
            return event, None
        try:
            frames = self._reader.feed(piece)
        except sse.FrameTooLarge as exc:
            return None, UpstreamBroken(self._backend, str(exc))
        event, failure = self._one_by_one(frames, now_s)
        return event, failure or self._too_silent(now_s)

    def end(self) -> Event:
        """The stream has ended without `[DONE]`.

        Raises:
            UpstreamBroken: in the middle.
        """
        if len(self._finished) < self._wanted or not all(self._finished.values()):
            words = "the stream ended before the answer did" if self.began else "an empty stream"
            raise UpstreamBroken(self._backend, words)
        return Event(sse.DONE, last=True)

    # whole events at a time

    def _in_one_go(self, piece: bytes, datas: list[bytes]) -> Event | None:
        """None: something in it needs a closer look, and nothing has been taken from it yet."""
        done = datas[-1] == DONE_DATA
        if done:
            datas.pop()
            if not datas and not self.began:
                return None
        chunks = read_chunks(datas)
        if chunks is None:
            return None
        for chunk in chunks:
            if chunk.failed or (self._withhold_usage and chunk.usage is not None):
                return None
        raw = self._renamed(piece, chunks)
        if raw is None:
            return None
        text_bytes, usage = 0, None
        for chunk in chunks:
            text_bytes += self._see(chunk)
            usage = chunk.usage or usage
        self.began = True
        self.done = done
        return Event(raw, usage, text_bytes, done)

    def _renamed(self, piece: bytes, chunks: list[Chunk]) -> bytes | None:
        """The piece with each chunk's `model` as the client knows it; None where it takes more than replacing bytes.

        Inside a JSON string a quote is escaped, so `"model"` is a key wherever it stands; with one per chunk it is the chunk's own.
        """
        names = {chunk.model for chunk in chunks}
        if names <= {self._model, None}:
            return piece
        (name, *others) = names
        key = b'"model"'
        if others or name is None or piece.count(key) != len(chunks):
            return None
        for colon in (b":", b": "):
            written = key + colon + msgspec.json.encode(name)
            if piece.count(written) == len(chunks):
                return piece.replace(written, key + colon + msgspec.json.encode(self._model))
        return None

    def _see(self, chunk: Chunk) -> int:
        """Bytes of generated content in a chunk."""
        size, finished = 0, self._finished
        for choice in chunk.choices or ():
            if choice.finish_reason is not None:
                finished[choice.index] = True
            elif choice.index not in finished:
                finished[choice.index] = False
            size += choice.size_bytes
        return size

    # one event at a time

    def _one_by_one(self, frames: list[sse.Frame], now_s: float) -> tuple[Event | None, BackendError | None]:
        events: list[Event] = []
        for frame in frames:
            try:
                event = self._event(frame)
            except BackendError as failure:
                return (_together(events) if events else None), failure
            if frame.data is not None:
                self._last_event_s = now_s
            if event is not None:
                events.append(event)
            if self.done:
                break
        return (_together(events) if events else None), None

    def _too_silent(self, now_s: float) -> BackendError | None:
        """Comments and pieces of an event that never ends keep a connection open; they are no answer."""
        timeouts = self._timeouts
        phase, deadline_s = ("idle", timeouts.idle_s) if self.began else ("first_byte", timeouts.first_byte_s)
        late = now_s - self._last_event_s > deadline_s
        return BackendTimeout(self._backend, phase, deadline_s) if late else None

    def _event(self, frame: sse.Frame) -> Event | None:
        """What goes on to the client for one frame; None where it is only for us."""
        if frame.data is None:
            return None  # comments are for the connection they came over
        if frame.data.strip() == DONE_DATA:
            self.done = True
            if not self.began:
                raise UpstreamBroken(self._backend, "an empty stream")
            return Event(sse.DONE, last=True)
        chunk = self._read(frame.data)
        if chunk.failed:
            raise self._refusals.of_event(frame.data)
        self.began = True
        text_bytes = self._see(chunk)
        raw, usage = frame.raw, chunk.usage
        if (counted := _TOKENS.match(raw)) is not None:
            raw = raw[counted.end() :]
            usage = usage or Usage(
                int(counted[1]), int(counted[2]), {"cached_tokens": int(counted[3])} if counted[3] else None
            )
        if self._withhold_usage and chunk.usage is not None and not chunk.choices:
            return Event(b"", usage)
        if chunk.model is not None and chunk.model != self._model:
            raw = sse.encode(rename_model(frame.data, self._model), event=frame.event)
        return Event(raw, usage, text_bytes)

    def _read(self, data: bytes) -> Chunk:
        try:
            return read_chunk(data)
        except (ValueError, msgspec.DecodeError):
            words = self._refusals.redact(data[:WORDS_BYTES].decode("utf-8", "replace"))[:200]
            raise UpstreamBroken(self._backend, f"not a JSON object: {words!r}") from None


def _together(events: list[Event]) -> Event:
    """Events that arrived together, as one: a write per network read instead of one per event."""
    if len(events) == 1:
        return events[0]
    usage = next((event.usage for event in reversed(events) if event.usage is not None), None)
    raw = b"".join(event.raw for event in events)
    return Event(raw, usage, sum(event.text_bytes for event in events), events[-1].last)
