"""Bytes of tokens -> text that may go out. Pure; one per sequence.

Two things are held back: an incomplete UTF-8 sequence at the end, and a tail that may be the beginning of a stop string.
"""

import codecs
from collections.abc import Sequence


class Transcript:
    """
    Args:
        stops: stop strings; the text ends before the first that is complete and shows none of it.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False
        self.read_chars = 0
        """Decoded so far."""
        self.shown_chars = 0
        """Given out so far."""

    def feed(self, piece: bytes) -> str:
        """The text that became certain with this piece. After a stop string: nothing any more."""
        return self._show(self._take(self._decoder.decode(piece)))

    def finish(self) -> str:
        """What was held back, at the end of generation; half a character becomes U+FFFD."""
        text = self._take(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return self._show(text)

    def _show(self, text: str) -> str:
        self.shown_chars += len(text)
        return text

    def _take(self, text: str) -> str:
        self.read_chars += len(text)
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        # The one that is complete first, so that the text does not depend on where tokens were cut.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, at = min(found)
            out, self._held = self._held[:at], ""
            return out
        keep = self._possible_stop()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def _possible_stop(self) -> int:
        """Length of the longest tail that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
