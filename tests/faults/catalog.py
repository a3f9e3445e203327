"""The faults of upstreams that have a name, and what a client sees of each: with and without streaming, alone in a route and
with a fallback behind it. `stage.py` plays them, docs/faults.md shows them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tests.faults import scripts as play
from tests.faults.outcome import ITSELF, SPARE, Outcome
from tests.faults.scripts import BAD_KEY, HELLO, LIKE_A_KEY, MB, WORDS
from tests.faults.upstream import Line, Script, chunk_of

UPSTREAM_ERROR, TIMEOUT, UNAVAILABLE = "upstream_error", "backend_timeout", "backend_unavailable"

OPEN_S = 60
"""How long a breaker in the catalogue stays open: longer than the tests run."""

BEHIND = "Hello from the fallback"
"""What the fallback says."""

WHOLE = Outcome(text=HELLO, finish="stop", answered_by=ITSELF)
HELPED = Outcome(text=BEHIND, finish="stop", answered_by=SPARE, spare_calls=1)


@dataclass(frozen=True)
class Part:
    """A fault without streaming, or with it."""

    scripts: tuple[Script, ...]
    """Played in turn, a call each, and again from the first."""
    alone: tuple[Outcome, ...]
    """One per request; the requests follow each other."""
    fallback: tuple[Outcome, ...]


def answered(*scripts: Script, **seen: Any) -> Part:
    """The client gets the answer."""
    outcome = replace(WHOLE, **seen)
    return Part(scripts, (outcome,), (outcome,))


def refused(script: Script, status: int, code: str) -> Part:
    """The request is at fault: asking elsewhere is no use."""
    outcome = Outcome(status, code, WORDS)
    return Part((script,), (outcome,), (outcome,))


def failed(*scripts: Script, status: int = 502, code: str = UPSTREAM_ERROR, **seen: Any) -> Part:
    """Nothing has reached the client yet, so the fallback may answer."""
    outcome = Outcome(status, code, **seen)
    return Part(scripts, (outcome,), (replace(HELPED, calls=outcome.calls),))


def broken(script: Script, code: str = UPSTREAM_ERROR, *, text: str = "Hel") -> Part:
    """The client has the first event, so nobody else may be asked."""
    outcome = Outcome(200, code, text=text, events=1, answered_by=ITSELF)
    return Part((script,), (outcome,), (outcome,))


def again(part: Part) -> Part:
    """The same, seen by two requests one after the other."""
    return replace(part, alone=part.alone * 2, fallback=part.fallback * 2)


@dataclass(frozen=True)
class Fault:
    name: str
    does: str
    """What the upstream does."""
    whole: Part | None
    """Without streaming; None: not played."""
    stream: Part | None
    retries: int = 0
    backend: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the faulty backend that differ from the stage's own."""


def always(name: str, does: str, part: Part, **more: Any) -> Fault:
    """The same with and without streaming."""
    return Fault(name, does, part, part, **more)


SOON = {"timeouts": {"connect_s": 5, "first_byte_s": 0.3, "idle_s": 0.3, "total_s": 20}}
HEAD_SOON = {"timeouts": {"connect_s": 5, "first_byte_s": 0.3, "idle_s": 20, "total_s": 20}}
ALL_SOON = {"timeouts": {"connect_s": 5, "first_byte_s": 20, "idle_s": 20, "total_s": 0.3}}
BREAKER = {"breaker": {"failures": 2, "open_s": OPEN_S}}

HEL = chunk_of("Hel")
LO = chunk_of("lo", finish="stop")
TIRED = failed(play.error(503))
GONE = Outcome(503, UNAVAILABLE, calls=0, retry_after=f"up to {OPEN_S}")

REFUSALS = (
    always(
        "429, short",
        "says 429 with `retry-after: 1`, and means it",
        answered(play.limited(1), calls=2),
        retries=1,
    ),
    always(
        "429, long",
        "says 429 with `retry-after: 17`; more than ten seconds are not waited for",
        failed(
            play.error(429, "slow_down", retry_after="17"),
            status=429,
            code="slow_down",
            message=WORDS,
            retry_after="17",
        ),
        retries=1,
    ),
    always(
        "429, bare",
        "says 429 every time, without `retry-after`",
        failed(play.error(429, "slow_down"), status=429, code="slow_down", message=WORDS, retry_after="1", calls=2),
        retries=1,
    ),
    always(
        "context overflow",
        "says 400 `context_length_exceeded`",
        refused(play.error(400, "context_length_exceeded"), 400, "context_length_exceeded"),
        retries=1,
    ),
    always(
        "content filter",
        "says 400 `content_filter`",
        refused(play.error(400, "content_filter"), 400, "content_filter"),
        retries=1,
    ),
    always(
        "filtered answer",
        "ends an answer with `finish_reason: content_filter`",
        answered(play.says(HELLO, finish="content_filter"), finish="content_filter"),
        retries=1,
    ),
    always(
        "bad key",
        "says 401 to the gateway's own key, and quotes the key",
        failed(play.error(401, "invalid_api_key", message=f"{BAD_KEY} is wrong, {LIKE_A_KEY} would be right")),
    ),
    always("forbidden", "says 403 to the gateway's own key", failed(play.error(403))),
)

OUTAGES = (
    always("500 once", "says 500 to the first call only", answered(play.error(500), play.hello, calls=2), retries=1),
    always("500 always", "says 500 to every call", failed(play.error(500), calls=2), retries=1),
    always(
        "503 for long",
        "says 503 to every call, until the breaker spares it further calls",
        Part(
            TIRED.scripts,
            (*TIRED.alone * 2, GONE),
            (*TIRED.fallback * 2, replace(HELPED, calls=0)),
        ),
        backend=BREAKER,
    ),
    always(
        "flapping",
        "says 503 to every other call; the breaker counts failures in a row only",
        Part(
            (*TIRED.scripts, play.hello),
            (*TIRED.alone, WHOLE) * 2,
            (*TIRED.fallback, WHOLE) * 2,
        ),
        backend=BREAKER,
    ),
    always(
        "refused",
        "nobody listens at its address",
        failed(status=503, code=UNAVAILABLE, calls=0),
        backend={"base_url": "http://127.0.0.1:1/v1"},
    ),
    always("reset", "resets the connection instead of answering", failed(play.reset)),
    always("closed", "closes the connection instead of answering", failed(play.close)),
    always("silence", "sends no byte at all", failed(play.silence, status=504, code=TIMEOUT), backend=SOON),
    always("redirect", "says 302", failed(play.redirect, play.hello)),
)

SLOWNESS = (
    always(
        "slow headers",
        "sends the head one byte at a time, for longer than `first_byte_s`",
        failed(play.slow_head(0.02), status=504, code=TIMEOUT),
        backend=SOON,
    ),
    always(
        "headers in bytes",
        "sends the head one byte at a time, within `first_byte_s`",
        answered(play.slow_head(0.001)),
    ),
    Fault(
        "late first token",
        "sends the head at once, and the rest after `first_byte_s` but within `idle_s`",
        answered(play.late_body(0.4)),
        failed(play.late_body(0.4), status=504, code=TIMEOUT),
        backend=HEAD_SOON,
    ),
    always(
        "no first token",
        "sends the head at once, and nothing behind it for `idle_s`",
        failed(play.head_only, status=504, code=TIMEOUT),
        backend=SOON,
    ),
    Fault(
        "comments only",
        "sends the head at once, then keep-alive comments for longer than `first_byte_s`",
        None,
        failed(play.streamed(end=play.comment), status=504, code=TIMEOUT),
        backend=HEAD_SOON,
    ),
    Fault(
        "slow body",
        "sends a little every now and then, for longer than `total_s`, which is for answers that are not streamed",
        failed(play.in_pieces(20, pause_s=0.03), status=504, code=TIMEOUT),
        answered(play.in_pieces(20, pause_s=0.03)),
        backend=ALL_SOON,
    ),
    Fault(
        "stall",
        "stops half-way and keeps the connection open",
        failed(play.half(Line.wait_until_peer_leaves), status=504, code=TIMEOUT),
        broken(play.streamed(HEL, end=Line.wait_until_peer_leaves), TIMEOUT),
        backend=SOON,
    ),
    Fault(
        "comments mid-stream",
        "stops half-way, but for keep-alive comments, for longer than `idle_s`",
        None,
        broken(play.streamed(HEL, end=play.comment), TIMEOUT),
        retries=1,
        backend=SOON,
    ),
)

CUTS = (
    Fault(
        "cut",
        "closes the connection half-way",
        failed(play.half(Line.close)),
        broken(play.streamed(HEL, end=Line.close)),
    ),
    Fault(
        "reset half-way",
        "resets the connection half-way",
        failed(play.half(Line.reset)),
        broken(play.streamed(HEL, end=play.reset_when_heard)),
    ),
    Fault(
        "cut without a length",
        "closes the connection half-way, where only that would mark the end",
        failed(play.without_length),
        broken(play.without_length),
    ),
    Fault(
        "missing [DONE]",
        "ends a stream with a `finish_reason`, but without `[DONE]`; the gateway adds it",
        None,
        answered(play.streamed(HEL, LO, end=Line.end_stream)),
    ),
    Fault(
        "missing end",
        "ends a stream with neither `finish_reason` nor `[DONE]`",
        None,
        broken(play.streamed(HEL, end=Line.end_stream)),
        retries=1,
    ),
    Fault(
        "error event",
        "sends an error in the middle of a stream",
        None,
        broken(play.streamed(HEL, {"error": {"message": "overloaded"}}, LO, "[DONE]", end=Line.end_stream)),
        retries=1,
    ),
    Fault(
        "malformed event",
        "sends an event that is not JSON in the middle of a stream, and goes on",
        failed(lambda request, line: line.answer(200, b'{"choices": [{"mess')),
        broken(play.streamed(HEL, '{"choices": [{"del', LO, "[DONE]", end=Line.end_stream)),
    ),
    Fault(
        "garbage in chunks",
        "spoils the chunked transfer half-way",
        failed(play.half_in_bad_chunks),
        broken(play.streamed(HEL, end=play.spoil_chunks)),
    ),
    Fault(
        "length too long",
        "announces a longer body than it sends, then closes; a stream is over with `[DONE]`",
        failed(play.announces(1.5)),
        answered(play.announces(1.5)),
    ),
    Fault(
        "length too short",
        "announces a shorter body than it sends",
        failed(play.announces(0.5)),
        broken(play.announces(0.5)),
    ),
)

NONSENSE = (
    Fault(
        "error as first frame",
        "says 200, and then that it failed",
        failed(lambda request, line: line.answer(200, b'{"error": {"message": "overloaded"}}')),
        failed(play.streamed({"error": {"message": "overloaded"}}, end=Line.end_stream)),
    ),
    Fault(
        "refusal as first frame",
        "says 200, and then that the request is at fault",
        None,
        refused(
            play.streamed({"error": {"message": WORDS, "type": "invalid_request_error"}}, end=Line.end_stream),
            400,
            "invalid_value",
        ),
        retries=1,
    ),
    Fault(
        "malformed first event",
        "starts a stream with an event that is not JSON",
        None,
        failed(play.streamed('{"choices": [{"del', LO, "[DONE]", end=Line.end_stream)),
    ),
    always("HTML", "says 200 with a web page", failed(play.html)),
    always("empty", "says 200 with an empty body", failed(play.empty)),
    Fault(
        "no choices",
        "says 200 with JSON that is no answer",
        failed(lambda request, line: line.answer(200, b'{"status": "ok"}')),
        None,
    ),
    Fault(
        "not UTF-8",
        "sends a text that is not UTF-8",
        failed(play.misspelt(b'lo"', b'\xff"')),
        broken(play.misspelt(b'lo"', b'\xff"')),
    ),
    Fault(
        "not UTF-8 aside",
        "sends a field that is not UTF-8, and of which the gateway reads nothing",
        failed(play.misspelt(b'"c1"', b'"\xff"')),
        broken(play.misspelt(b'"c1"', b'"\xff"')),
    ),
    Fault(
        "not UTF-8 in a name",
        "sends a field whose name is not UTF-8",
        failed(play.misspelt(b'"created"', b'"\xff"')),
        broken(play.misspelt(b'"created"', b'"\xff"')),
    ),
    Fault(
        "not UTF-8 at once",
        "starts a stream with an event whose name of a field is not UTF-8",
        None,
        failed(play.misspelt(b'"created"', b'"\xff"', at_once=True)),
    ),
    always("other kind", "streams where JSON was asked for, and the other way round", failed(play.other_kind)),
    always("not HTTP", "talks another protocol", failed(play.nonsense)),
    always("unasked gzip", "packs the answer although it was asked not to", answered(play.packed)),
    always("unknown packing", "packs the answer in a way the gateway cannot unpack", failed(play.foreign_encoding)),
    always(
        "two answers",
        "sends a second answer that nobody asked for right behind the first; the next request must not get it",
        again(answered(play.answers_twice(late=False))),
    ),
    always(
        "late second answer",
        "sends a second answer while nobody asks for anything; the next request must not get it",
        again(answered(play.answers_twice(late=True))),
    ),
    always(
        "split events",
        "sends the body byte by byte, so that everything is cut in its middle",
        answered(play.in_pieces(1)),
    ),
    always(
        "U+2028",
        "writes a line separator that is no line end into the text",
        answered(play.says("Hel\u2028\u2029\u0085lo"), text="Hel\u2028\u2029\u0085lo"),
    ),
    always(
        "huge event",
        "sends 1 MB of text in one event",
        answered(play.says("x" * MB), text=f"{MB} × x"),
    ),
    always("50 MB", "sends 50 MB of text", answered(play.large_body, text=f"{50 * MB} × x")),
    always("endless", "sends an answer, or one event, that never ends", failed(play.endless)),
)

FAULTS = (*REFUSALS, *OUTAGES, *SLOWNESS, *CUTS, *NONSENSE)


class Case(NamedTuple):
    """One fault, played one way."""

    fault: Fault
    part: Part
    stream: bool
    fallback: bool

    @property
    def name(self) -> str:
        """Its model and its backend are called so: a case shares no connection and no breaker with another."""
        fault = re.sub(r"[^a-z0-9]+", "-", self.fault.name.lower()).strip("-")
        return f"{fault}/{'stream' if self.stream else 'whole'}/{'fallback' if self.fallback else 'alone'}"

    @property
    def expected(self) -> tuple[Outcome, ...]:
        return self.part.fallback if self.fallback else self.part.alone

    def __str__(self) -> str:
        return f"{self.fault.name}, {'streamed' if self.stream else 'not streamed'}"


CASES = tuple(
    Case(fault, part, stream, fallback)
    for fault in FAULTS
    for stream, part in ((False, fault.whole), (True, fault.stream))
    if part is not None
    for fallback in (False, True)
)
