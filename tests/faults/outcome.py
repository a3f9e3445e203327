"""What a client sees of one request, as a value: the catalogue expects it, the stage observes it, the table words it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

ITSELF = "itself"
SPARE = "spare"

NO_END = "a stream that ends without a word"
UNREADABLE = "a stream that is not JSON"


@dataclass(frozen=True)
class Outcome:
    status: int = 200
    code: str = ""
    """Of the error, in the body or in the last event. Empty: the answer is complete. `NO_END` and `UNREADABLE` are never right."""
    message: str = ""
    """Of an error that the upstream is quoted on; the gateway's own words are left out."""
    text: str = ""
    """What reached the client of the answer; a long one shortened by `shortened`."""
    finish: str = ""
    events: int = 0
    """Those that came before the error event; 0 where there is none."""
    answered_by: str = ""
    """Whose answer or part of an answer it is, as `x-chasqui-backend` says."""
    calls: int = 1
    """How often the faulty upstream was asked for this request."""
    spare_calls: int = 0
    """How often the fallback was asked."""
    retry_after: str = ""

    @property
    def words(self) -> str:
        """For operators."""
        if self.code in (NO_END, UNREADABLE):
            return self.code
        if self.answered_by == SPARE:
            return "the fallback's answer"
        extras = [f"after {self.calls} calls"] if self.calls > 1 else []
        if not self.code:
            extras += [f"`finish_reason: {self.finish}`"] if self.finish != "stop" else []
            return ", ".join(["the whole answer", *extras])
        if self.status == 200:
            count = "1 event" if self.events == 1 else f"{self.events} events"
            return ", ".join([f"{count}, then an error event `{self.code}`", *extras])
        extras += ["the upstream's words"] if self.message else []
        extras += [f"`retry-after` {self.retry_after}"] if self.retry_after else []
        return ", ".join([f"{self.status} `{self.code}`", *extras])


def told(outcomes: Sequence[Outcome]) -> str:
    """Requests one after the other, in words."""
    runs = [(words, len(list(run))) for words, run in groupby(outcome.words for outcome in outcomes)]
    return "; then ".join(words if times == 1 else f"{words} ({times} times)" for words, times in runs)


def shortened(text: str) -> str:
    """A long text of one character as `1048576 × x`, so that a failing comparison can be read."""
    return f"{len(text)} × {text[0]}" if len(text) > 100 and not text.strip(text[0]) else text
