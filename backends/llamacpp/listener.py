"""The loop's side of a sequence: tokens as they come from the thread -> text, scores and times."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from backends.llamacpp.sequences import Ask, Began, Ended, Likely, Score, Step, Timings
from backends.llamacpp.transcript import Transcript

Piece = Callable[[int, bool], bytes]
"""(token, whether a control token's text is wanted) -> its bytes"""


class Listener:
    def __init__(self, ask: Ask, piece: Piece, clock: Callable[[], float] = time.perf_counter) -> None:
        self._ask = ask
        self._piece = piece
        self._clock = clock
        self._transcript = Transcript(ask.stops)
        self._held: deque[tuple[int, Likely]] = deque()
        """(characters before it, score) of tokens whose text is not shown yet"""
        self._shared = 0
        self._produced = 0
        self._began_s = self._first_s = clock()

    def hear(self, items: Iterable[Any]) -> Step:
        """
        Raises:
            Exception: what the thread said instead of tokens.
        """
        text, before, shared = "", self._produced, 0
        for item in items:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Began):
                self._began_s = self._clock()
                self._shared = shared = item.shared
            elif isinstance(item, Ended):
                text += self._transcript.finish()
                finish = "stop" if self._transcript.stopped else item.finish
                return self._last(text, before, finish, shared)
            else:
                text += self._take(item)
                if self._transcript.stopped:
                    return self._last(text, before, "stop", shared)
        return Step(text, self._produced - before, None, shared, self._shown_scores(), self._timings())

    def _take(self, item: int | Score) -> str:
        token = item.token if isinstance(item, Score) else item
        if not self._produced:
            self._first_s = self._clock()
        self._produced += 1
        piece = self._piece(token, token in self._ask.shown)
        if isinstance(item, Score):
            top = tuple((self._piece(other, True), logprob) for other, logprob in item.top)
            offset = self._transcript.read_chars
            self._held.append((offset, Likely(piece or self._piece(token, True), item.logprob, top, offset)))
        return self._transcript.feed(piece)

    def _shown_scores(self) -> tuple[Likely, ...]:
        """A token behind a stop string is not part of the answer; one that may become part of one waits with its text."""
        shown = []
        while self._held and self._held[0][0] < self._transcript.shown_chars:
            shown.append(self._held.popleft()[1])
        return tuple(shown)

    def _last(self, text: str, before: int, finish: str, shared: int) -> Step:
        scores = self._shown_scores()
        if not self._transcript.stopped:
            scores += tuple(likely for _, likely in self._held)
        return Step(text, self._produced - before, finish, shared, scores, self._timings())

    def _timings(self) -> Timings:
        now_s = self._clock()
        first_s = self._first_s if self._produced else now_s
        return Timings(
            cache_n=self._shared,
            prompt_n=len(self._ask.prompt) - self._shared,
            prompt_ms=(first_s - self._began_s) * 1e3,
            predicted_n=self._produced,
            predicted_ms=(now_s - first_s) * 1e3,
        )
