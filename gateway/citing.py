"""Citations put into an answer on its way out: annotations for the markers in its text, a list of sources, the passages themselves.

Whole answers and streams get the same; in a stream it comes in a chunk of its own, right before the one that ends a choice.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from backends import sse
from backends.base import CHAT
from gateway.retrieving import Retrieved
from retrieval.citations import Marker, markers

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


class Citing:
    """
    Args:
        shown: numbers of the passages that the engine saw.
        lists: sources are listed under the answer.
    """

    def __init__(
        self,
        path: str,
        retrieved: Retrieved,
        *,
        shown: Collection[int],
        left_out: Sequence[int],
        marks: bool,
        lists: bool,
    ) -> None:
        self._chat = path == CHAT
        self._retrieved = retrieved
        self._shown = frozenset(shown) if marks else frozenset()
        self._left_out = left_out
        self._lists = lists and marks
        self._texts: dict[int, list[str]] = {}

    def whole(self, body: bytes) -> bytes:
        """An answer that is not what it should be goes out as it is."""
        try:
            fields = _object.decode(body)
            choices = [self._cited(choice) for choice in _objects.decode(fields.get("choices", msgspec.Raw(b"[]")))]
        except msgspec.MsgspecError:
            return body
        fields["choices"] = msgspec.Raw(msgspec.json.encode(choices))
        return msgspec.json.encode(fields | self._extra())

    def _cited(self, choice: dict[str, msgspec.Raw]) -> dict[str, Any]:
        if not self._chat:
            text = msgspec.json.decode(choice.get("text", b'""'), type=str | None) or ""
            return {**choice, "text": text + self._sources(text)}
        message = _object.decode(choice.get("message", msgspec.Raw(b"{}")))
        text = msgspec.json.decode(message.get("content", b"null"), type=str | None) or ""
        found = list(markers(text, self._shown))
        if not found:
            return {**choice}
        own = msgspec.json.decode(message.get("annotations", b"null"), type=list[Any] | None) or []
        said = {"content": text + self._sources(text), "annotations": [*own, *map(self._annotation, found)]}
        return {**choice, "message": {**message, **said}}

    def event(self, raw: bytes) -> bytes:
        """One event of a stream, or several, with what belongs in front of them."""
        out = bytearray()
        start = 0
        for end in _EVENT_END.finditer(raw):
            block = raw[start : end.end()]
            start = end.end()
            out += self._before(block) + block
        return bytes(out + raw[start:])

    def _before(self, block: bytes) -> bytes:
        data = b"".join(line[5:].strip() for line in block.splitlines() if line.startswith(b"data:"))
        if not data.startswith(b"{"):
            return b""
        try:
            chunk = msgspec.json.decode(data)
            choices = chunk.get("choices") or []
            ended = [self._follow(choice) for choice in choices]
        except (msgspec.MsgspecError, AttributeError, TypeError):
            return b""
        wanted = [index for index in ended if index is not None]
        added = [self._ending(index) for index in wanted]
        return b"".join(sse.encode(msgspec.json.encode(self._chunk(chunk, choice))) for choice in added if choice)

    def _follow(self, choice: Mapping[str, Any]) -> int | None:
        """Its index, if it ends here."""
        index = int(choice.get("index") or 0)
        text = (choice.get("delta") or {}).get("content") if self._chat else choice.get("text")
        if isinstance(text, str):
            self._texts.setdefault(index, []).append(text)
        return index if choice.get("finish_reason") else None

    def _ending(self, index: int) -> dict[str, Any] | None:
        text = "".join(self._texts.get(index, ()))
        sources = self._sources(text)
        if not self._chat:
            said: dict[str, Any] = {"text": sources}
        else:
            delta: dict[str, Any] = {"content": sources} if sources else {}
            if found := list(markers(text, self._shown)):
                delta["annotations"] = [self._annotation(one) for one in found]
            said = {"delta": delta}
        if not sources and not said.get("delta") and not (self._retrieved.wish.shows and index == 0):
            return None
        return {"index": index, **said, "finish_reason": None}

    def _chunk(self, chunk: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
        envelope = {name: value for name, value in chunk.items() if name not in ("choices", "usage", "timings")}
        return {**envelope, "choices": [choice], **(self._extra() if choice["index"] == 0 else {})}

    def _extra(self) -> dict[str, Any]:
        return {"retrieval": self._retrieved.told(self._left_out)} if self._retrieved.wish.shows else {}

    def _annotation(self, marker: Marker) -> dict[str, Any]:
        one = self._retrieved.found[marker.number - 1]
        cited = {
            "start_index": marker.start,
            "end_index": marker.end,
            "url": self._retrieved.link(one),
            "title": one.chunk.source,
        }
        return {"type": "url_citation", "url_citation": cited}

    def _sources(self, text: str) -> str:
        if not self._lists:
            return ""
        numbers = sorted({marker.number for marker in markers(text, self._shown)})
        lines = [f"[{number}] {self._retrieved.found[number - 1].chunk.source}" for number in numbers]
        return "\n\nSources:\n" + "\n".join(lines) if lines else ""
