"""Plays the catalogue: one gateway, one upstream that does in turn everything wrong, one that does nothing wrong behind it."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.faults.catalog import BEHIND, CASES, OPEN_S, Case
from tests.faults.outcome import ITSELF, NO_END, SPARE, UNREADABLE, Outcome, shortened
from tests.faults.scripts import BAD_KEY, LIKE_A_KEY, says
from tests.faults.upstream import Line, Received, Upstream, playing
from tests.running import running

CHAT = "/v1/chat/completions"
PATIENT = {"connect_s": 5, "first_byte_s": 20, "idle_s": 20, "total_s": 30}
"""For faults that are not about time: a busy machine must not look like one of them."""

QUOTED = frozenset({400, 429})
"""Statuses of the catalogue whose message is the upstream's."""


class Players:
    """The upstream's script: plays the case that the request's model is called after."""

    def __init__(self) -> None:
        self._cases = {case.name: case for case in CASES}
        self._calls: Counter[str] = Counter()
        self._running = 0
        self._ended = threading.Condition()

    def __call__(self, request: Received, line: Line) -> None:
        case = self._cases[request.json["model"]]
        with self._ended:
            turn = self._calls[case.name] % len(case.part.scripts)
            self._calls[case.name] += 1
            self._running += 1
        try:
            case.part.scripts[turn](request, line)
        finally:
            with self._ended:
                self._running -= 1
                self._ended.notify_all()

    def wait_until_all_ended(self) -> bool:
        """False: a script goes on, so the gateway has not left a connection that it has no more use for."""
        with self._ended:
            return self._ended.wait_for(lambda: self._running == 0, timeout=5)


class Stage:
    def __init__(self, http: httpx.Client, players: Players, faulty: Upstream, spare: Upstream) -> None:
        self._http = http
        self._players = players
        self._faulty = faulty
        self._spare = spare

    def observe(self, case: Case) -> tuple[Outcome, ...]:
        """Ask as often as the case expects; what a client saw of each request."""
        return tuple(self._ask(case) for _ in case.expected)

    def _ask(self, case: Case) -> Outcome:
        calls, spare_calls = len(self._faulty.received), len(self._spare.received)
        self._faulty.heard.clear()
        messages = [{"role": "user", "content": "Hello?"}]
        asked = {"model": case.name, "messages": messages, "stream": case.stream}
        with self._http.stream("POST", CHAT, json=asked) as answer:
            raw = self._read(answer)
        assert self._players.wait_until_all_ended(), "the gateway still listens to an upstream that it has given up"
        self._refuse_leaks(raw, answer.headers)
        return Outcome(
            status=answer.status_code,
            **(_read_stream(raw) if case.stream and answer.status_code == 200 else _read_whole(raw, answer)),
            answered_by=_who(answer, case),
            calls=len(self._faulty.received) - calls,
            spare_calls=len(self._spare.received) - spare_calls,
            retry_after=_retry_after(answer),
        )

    def _read(self, answer: httpx.Response) -> bytearray:
        raw = bytearray()
        try:
            for piece in answer.iter_bytes():
                raw += piece
                self._faulty.heard.set()
        except httpx.RemoteProtocolError:
            pass  # cut in the open; what came says whether it was told so
        return raw

    def _refuse_leaks(self, raw: bytearray, headers: httpx.Headers) -> None:
        """Whatever happens, no client reads a key or where the upstreams are."""
        for secret in (BAD_KEY, LIKE_A_KEY, "127.0.0.1", f":{self._faulty.port}"):
            assert secret.encode() not in raw, "a secret in the answer"
            assert all(secret not in value for value in headers.values()), "a secret in the headers"


@contextmanager
def staged(home: Path) -> Iterator[Stage]:
    players = Players()
    with playing(players) as faulty, playing(says(BEHIND)) as spare:
        config = {
            "backends": [
                *(_backend(case, faulty) for case in CASES),
                {"name": SPARE, "engine": "openai", "base_url": spare.base_url},
            ],
            "models": [_model(case) for case in CASES],
            "roles": [{"name": "default"}],
        }
        with running(home, config, {"UPSTREAM_KEY": BAD_KEY}) as gateway, gateway.http as http:
            yield Stage(http, players, faulty, spare)


def _backend(case: Case, faulty: Upstream) -> dict[str, Any]:
    usual = {"base_url": faulty.base_url, "timeouts": PATIENT, "breaker": False, "api_key_env": "UPSTREAM_KEY"}
    return {"name": case.name, "engine": "openai"} | usual | dict(case.fault.backend)


def _model(case: Case) -> dict[str, Any]:
    route = [case.name, SPARE] if case.fallback else [case.name]
    return {"name": case.name, "route": route, "retries": case.fault.retries}


def _read_whole(raw: bytearray, answer: httpx.Response) -> dict[str, Any]:
    body = json.loads(raw)
    if answer.status_code != 200:
        error = body["error"]
        return {"code": error["code"], "message": error["message"] if answer.status_code in QUOTED else ""}
    choice = body["choices"][0]
    return {"text": shortened(choice["message"]["content"]), "finish": choice["finish_reason"]}


def _read_stream(raw: bytearray) -> dict[str, Any]:
    """Read strictly, as `data:` frames."""
    *frames, rest = bytes(raw).split(b"\n\n")
    assert all(frame.startswith(b"data: ") for frame in frames), frames
    assert rest == b""
    *events, last = (frame.removeprefix(b"data: ") for frame in frames)
    if b'"error"' in last:
        return _read_events(events) | {"code": json.loads(last)["error"]["code"], "events": len(events)}
    return _read_events(events) if last == b"[DONE]" else {"code": NO_END}


def _read_events(events: list[bytes]) -> dict[str, Any]:
    try:
        choices = [json.loads(event)["choices"][0] for event in events]
    except ValueError:
        return {"code": UNREADABLE}
    return {
        "text": shortened("".join(choice["delta"].get("content", "") for choice in choices)),
        "finish": next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), ""),
    }


def _who(answer: httpx.Response, case: Case) -> str:
    if answer.status_code != 200:
        return ""  # the header names the station that was asked last, but nobody answered
    return {case.name: ITSELF, SPARE: SPARE}[answer.headers["x-chasqui-backend"]]


def _retry_after(answer: httpx.Response) -> str:
    """A breaker's counts down, so of that one only the limit is known."""
    value: str = answer.headers.get("retry-after", "")
    return f"up to {OPEN_S}" if answer.status_code == 503 and value and 0 < int(value) <= OPEN_S else value
