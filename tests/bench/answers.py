"""Whether a gateway's answers are right: asked once before it is measured, because a fast error is no figure."""

import json
import time

import httpx

from tests.bench.gateways import Gateway, request_body
from tests.bench.upstream import EVENTS, PACE_S, PACED, STREAM_WORDS, WORDS

ANSWER_S = 30.0


class WrongAnswer(Exception):
    """What was expected and did not come."""


def check(gateway: Gateway) -> None:
    """Raises `WrongAnswer` unless a whole answer, a stream and a paced stream come through complete."""
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    with httpx.Client(headers=gateway.headers, timeout=ANSWER_S, trust_env=False) as http:
        try:
            check_whole(http, url)
            check_stream(http, url, "Hello")
            waited_s = check_stream(http, url, f"Hello, {PACED}")
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as exc:
            raise WrongAnswer(f"its answer cannot be read: {exc!r}") from exc
    # One that gathers the events and hands them over at the end would look cheap.
    if waited_s > EVENTS * PACE_S / 2:
        raise WrongAnswer(f"the first event of a paced stream came only after {waited_s:.1f} s")


def check_whole(http: httpx.Client, url: str) -> None:
    answer = http.post(url, content=request_body("Hello", stream=False))
    if answer.status_code != 200 or answer.json()["choices"][0]["message"]["content"] != WORDS:
        raise WrongAnswer(f"no whole answer but {answer.status_code} {answer.text[:200]}")


def check_stream(http: httpx.Client, url: str, message: str) -> float:
    """Returns the seconds until the first event."""
    lines: list[str] = []
    first_s = 0.0
    began = time.monotonic()
    with http.stream("POST", url, content=request_body(message, stream=True)) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                first_s = first_s or time.monotonic() - began
                lines.append(line.removeprefix("data: "))
    events = [json.loads(line)["choices"][0] for line in lines[:-1]]
    words = [event["delta"].get("content") or "" for event in events]
    if (
        answer.status_code != 200
        or lines[-1:] != ["[DONE]"]
        or len(events) < EVENTS
        or "".join(words) != "".join(STREAM_WORDS)
    ):
        raise WrongAnswer(f"no whole stream but {answer.status_code} with {len(events)} of {EVENTS} events")
    return first_s
