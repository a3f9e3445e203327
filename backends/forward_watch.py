"""Watches an event stream beside chat and completions: whether it began well, came to its end, and what it used. Pure.

OpenAI's event types name their ends (`response.completed`, `image_generation.completed`, `speech.audio.done`, `[DONE]`); a
stream that stops before one of them is broken.
"""

from typing import Any

import msgspec

from backends import sse
from backends.errors import BackendError, UpstreamBroken
from backends.refusals import Refusals
from backends.wire import Usage

RESPONSE_ENDS = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})
"""Its parts have ends of their own (`response.output_text.done`, `response.web_search_call.completed`), which are not the answer's."""
OTHER_ENDS = (".completed", ".done", ".failed")


class ForwardWatch:
    def __init__(self, backend: str, refusals: Refusals) -> None:
        self._backend = backend
        self._refusals = refusals
        self._reader = sse.Reader()
        self.began = False
        """An event was seen that is more than a comment."""
        self.ended = False
        self.usage = Usage()
        self.text_bytes = 0

    def feed(self, piece: bytes) -> BackendError | None:
        """The failure that the piece tells of, where it is the stream's first event; later ones are for the client to read."""
        try:
            frames = self._reader.feed(piece)
        except sse.FrameTooLarge as exc:
            return UpstreamBroken(self._backend, str(exc))
        for frame in frames:
            if frame.data is None:
                continue
            first, self.began = not self.began, True
            decoded = _decoded(frame.data)
            kind = frame.event or str(decoded.get("type", ""))
            if first and (kind == "error" or decoded.get("error")):
                return self._refusals.of_event(frame.data)
            self._see(kind, frame.data, decoded)
        return None

    def end(self) -> None:
        """
        Raises:
            UpstreamBroken: the stream stopped before its end.
        """
        if not self.ended:
            words = "the stream ended before the answer did" if self.began else "an empty stream"
            raise UpstreamBroken(self._backend, words)

    def _see(self, kind: str, data: bytes, decoded: dict[str, Any]) -> None:
        last = kind in RESPONSE_ENDS if kind.startswith("response.") else kind.endswith(OTHER_ENDS)
        if last or kind == "error" or data.strip() == b"[DONE]":
            self.ended = True
        if kind.endswith(".delta") and isinstance(decoded.get("delta"), str):
            self.text_bytes += len(decoded["delta"].encode())
        found = usage_of(decoded)
        self.usage = found if found != Usage() else self.usage


def usage_of(decoded: Any) -> Usage:
    """What an answer or event says of tokens, by either of OpenAI's names, at its top or in its `response`."""
    outer = decoded if isinstance(decoded, dict) else {}
    inner = outer.get("response")
    usage = outer.get("usage") or (inner.get("usage") if isinstance(inner, dict) else None)
    if not isinstance(usage, dict):
        return Usage()
    counts = [
        next((usage[name] for name in names if type(usage.get(name)) is int), 0)
        for names in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))
    ]
    try:
        return Usage(counts[0], counts[1], usage.get("input_tokens_details") or usage.get("prompt_tokens_details"))
    except ValueError:
        return Usage()


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return decoded if isinstance(decoded, dict) else {}
