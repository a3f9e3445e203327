"""What clients see when providers misbehave: before the first byte a status, after it one error event, never a clean end."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.faults.upstream import Line, Received, Upstream, answer_of, chunk_of, playing
from tests.running import Gateway, running

CHAT = "/v1/chat/completions"
UPSTREAM_KEY = "sk-upstream-secret-0123456789"
ASK: dict[str, Any] = {"model": "far", "messages": [{"role": "user", "content": "Hello"}]}


class Provider:
    """An upstream whose script a test sets."""

    def __init__(self) -> None:
        self.script: Callable[[Received, Line], None] = lambda request, line: line.answer(200, answer_of("hello"))

    def __call__(self, request: Received, line: Line) -> None:
        self.script(request, line)


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture(scope="module")
def upstream(provider: Provider) -> Iterator[Upstream]:
    with playing(provider) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    deadlines = {"connect_s": 1, "first_byte_s": 0.5, "idle_s": 0.5, "total_s": 5}
    far = {
        "engine": "openai",
        "base_url": upstream.base_url,
        "api_key_env": "UPSTREAM_KEY",
        "timeouts": deadlines,
        "breaker": False,
    }
    config = {
        "backends": [
            {"name": "far", **far},
            {"name": "plain", **far, "stream_usage": False, "headers": {"x-extra": "1"}},
            {"name": "nowhere", "engine": "openai", "base_url": "http://127.0.0.1:1/v1", "breaker": False},
            {"name": "guarded", **far, "breaker": {"failures": 3, "open_s": 60}},
        ],
        "models": [
            {"name": "far", "route": [{"backend": "far", "model": "upstream-model"}]},
            {"name": "plain", "route": [{"backend": "plain", "model": "upstream-model"}]},
            {"name": "nowhere", "route": ["nowhere"]},
            {"name": "guarded", "route": [{"backend": "guarded", "model": "upstream-model"}]},
            {"name": "safe", "route": ["nowhere", {"backend": "far", "model": "upstream-model"}]},
            {"name": "embed", "route": ["far"]},
            {"name": "stubborn", "route": [{"backend": "far", "model": "upstream-model"}], "retries": 2},
        ],
        "roles": [{"name": "default"}],
    }
    home = tmp_path_factory.mktemp("faults")
    with running(home, config, {"UPSTREAM_KEY": UPSTREAM_KEY}) as gateway:
        yield gateway


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http as client:
        yield client


def ask(http: httpx.Client, *, stream: bool, **extra: Any) -> httpx.Response:
    return http.post(CHAT, json=ASK | {"stream": stream} | extra)


def events(answer: httpx.Response) -> list[Any]:
    frames = [frame.removeprefix("data: ") for frame in answer.text.split("\n\n") if frame]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


def test_a_request_goes_through_untouched_except_for_the_model(
    http: httpx.Client, upstream: Upstream, provider: Provider
) -> None:
    provider.script = lambda request, line: line.answer(
        200, answer_of("hi", x_extra={"kept": [1.50, 1e400 > 0]}), openai_processing_ms="7", set_cookie="a=b"
    )
    raw = b'{"model":"far","messages":[],"temperature":0.10,"x_unknown":{"z":1,"a":1.0e2},"seed":12345678901234567890}'
    answer = http.post(CHAT, content=raw, headers={"openai-beta": "x=1", "cookie": "secret=1", "x-custom": "1"})
    seen = upstream.received[-1]
    assert seen.raw == raw.replace(b'"far"', b'"upstream-model"')
    assert seen.path == "/v1/chat/completions"
    assert seen.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert seen.headers["accept-encoding"] == "identity"
    assert seen.headers["openai-beta"] == "x=1"
    assert "cookie" not in seen.headers
    assert "x-custom" not in seen.headers
    assert answer.json()["model"] == "far"
    assert answer.json()["x_extra"] == {"kept": [1.5, True]}
    assert answer.headers["openai-processing-ms"] == "7"
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-chasqui-model"] == "upstream-model"


def test_a_stream_passes_as_it_comes_with_the_clients_name(http: httpx.Client, provider: Provider) -> None:
    def script(request: Received, line: Line) -> None:
        assert request.json["stream_options"] == {"include_usage": True}
        line.start_stream()
        line.chunk(b": a comment\n\n")
        line.event(chunk_of("Hel", x_extra=1))
        raw = b"data: " + json.dumps(chunk_of("l\u2028o")).encode() + b"\r\n\r\n"
        for byte in range(0, len(raw), 7):
            line.chunk(raw[byte : byte + 7])
        line.event(chunk_of("", finish="stop"))
        line.event(
            {
                "id": "c1",
                "model": "upstream-model",
                "choices": [],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            }
        )
        line.event("[DONE]")
        line.end_stream()

    provider.script = script
    seen = events(ask(http, stream=True))
    assert seen[-1] == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in seen[:-1]) == "Hell\u2028o"
    assert {chunk["model"] for chunk in seen[:-1]} == {"far"}
    assert seen[0]["x_extra"] == 1
    assert all(chunk["choices"] for chunk in seen[:-1]), "usage was not asked for by the client"


def test_usage_reaches_a_client_that_asks_for_it(http: httpx.Client, provider: Provider) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

    def script(request: Received, line: Line) -> None:
        line.start_stream()
        line.event(chunk_of("x", finish="stop"))
        line.event({"id": "c1", "model": "m", "choices": [], "usage": usage})
        line.event("[DONE]")
        line.end_stream()

    provider.script = script
    assert events(ask(http, stream=True, stream_options={"include_usage": True}))[-2]["usage"] == usage


def test_stream_usage_off_leaves_the_clients_body_alone(
    http: httpx.Client, upstream: Upstream, provider: Provider
) -> None:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        line.event(chunk_of("x", finish="stop"))
        line.event("[DONE]")
        line.end_stream()

    provider.script = script
    assert http.post(CHAT, json=ASK | {"model": "plain", "stream": True}).status_code == 200
    assert "stream_options" not in upstream.received[-1].json
    assert upstream.received[-1].headers["x-extra"] == "1"


def error(status: int, **fields: Any) -> Callable[[Received, Line], None]:
    headers = fields.pop("headers", {})
    body = json.dumps({"error": {"message": "words", "type": "t", "param": "p", "code": "c"} | fields}).encode()
    return lambda request, line: line.answer(status, body, **headers)


def stalls(request: Received, line: Line) -> None:
    line.wait_until_peer_leaves()


BEFORE: list[tuple[str, Callable[[Received, Line], None], int, str]] = [
    ("reset before headers", lambda request, line: line.reset(), 502, "upstream_error"),
    ("closed before headers", lambda request, line: line.close(), 502, "upstream_error"),
    ("silence", stalls, 504, "backend_timeout"),
    ("500", error(500), 502, "upstream_error"),
    ("503", error(503), 502, "upstream_error"),
    ("401 for our key", error(401, message=f"bad key {UPSTREAM_KEY}"), 502, "upstream_error"),
    ("403", error(403), 502, "upstream_error"),
    ("redirect", lambda request, line: line.answer(302, b"", location="http://127.0.0.1:1/"), 502, "upstream_error"),
    ("400", error(400), 400, "c"),
    ("context overflow", error(400, code="context_length_exceeded"), 400, "context_length_exceeded"),
    ("404", error(404), 404, "c"),
    ("422", error(422), 422, "c"),
    ("429", error(429, headers={"retry_after": "17"}), 429, "c"),
    (
        "html under 200",
        lambda request, line: line.answer(200, b"<html>oops</html>", content_type="text/html"),
        502,
        "upstream_error",
    ),
    ("empty body under 200", lambda request, line: line.answer(200, b""), 502, "upstream_error"),
    (
        "an error under 200",
        lambda request, line: line.answer(200, b'{"error": {"message": "no"}}'),
        502,
        "upstream_error",
    ),
    (
        "not UTF-8",
        lambda request, line: line.answer(200, answer_of("x").replace(b'"c1"', b'"\xff"')),
        502,
        "upstream_error",
    ),
    ("an object without choices", lambda request, line: line.answer(200, b"{}"), 502, "upstream_error"),
    ("not HTTP", lambda request, line: line.send(b"\x00\x01nonsense\r\n\r\n"), 502, "upstream_error"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("script", "status", "code"), [row[1:] for row in BEFORE], ids=[row[0] for row in BEFORE])
def test_a_failure_before_the_first_byte_is_a_status(
    http: httpx.Client,
    provider: Provider,
    script: Callable[[Received, Line], None],
    status: int,
    code: str,
    stream: bool,
) -> None:
    provider.script = script
    answer = ask(http, stream=stream)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert UPSTREAM_KEY not in answer.text
    assert answer.headers.get("retry-after") == ("17" if status == 429 else None)


def test_a_429_without_retry_after_gets_one(http: httpx.Client, provider: Provider) -> None:
    provider.script = error(429)
    assert int(ask(http, stream=False).headers["retry-after"]) >= 1


def test_a_truncated_whole_answer_is_an_error(http: httpx.Client, provider: Provider) -> None:
    def script(request: Received, line: Line) -> None:
        line.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n" + answer_of("hi")[:50]
        )
        line.close()

    provider.script = script
    assert ask(http, stream=False).status_code == 502


first_seen = threading.Event()
"""The client has the first event. A reset may overtake bytes that nobody has read yet, so breaking streams wait for it."""


def streamed(*events: Any, end: Callable[[Line], None], wait: bool = False) -> Callable[[Received, Line], None]:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        for number, event in enumerate(events):
            if wait and number == 1:
                assert first_seen.wait(5)
            line.event(event)
        if wait and len(events) == 1:
            assert first_seen.wait(5)
        end(line)

    return script


FIRST: list[tuple[str, Callable[[Received, Line], None], int]] = [
    (
        "error as first frame",
        streamed({"error": {"message": "overloaded", "type": "server_error"}}, end=Line.end_stream),
        502,
    ),
    (
        "client's error as first frame",
        streamed({"error": {"message": "bad", "type": "invalid_request_error"}}, end=Line.end_stream),
        400,
    ),
    ("empty stream", streamed(end=Line.end_stream), 502),
    ("only [DONE]", streamed("[DONE]", end=Line.end_stream), 502),
    ("malformed first event", streamed("{nonsense", end=Line.end_stream), 502),
    ("cut before an event", streamed(end=Line.reset), 502),
    ("silent after the head", streamed(end=lambda line: line.wait_until_peer_leaves() and None), 504),
]


@pytest.mark.parametrize(("script", "status"), [row[1:] for row in FIRST], ids=[row[0] for row in FIRST])
def test_a_stream_that_fails_before_its_first_event_is_a_status(
    http: httpx.Client, provider: Provider, script: Callable[[Received, Line], None], status: int
) -> None:
    provider.script = script
    answer = ask(http, stream=True)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


MIDDLE: list[tuple[str, Callable[[Received, Line], None], str]] = [
    ("cut", streamed(chunk_of("Hel"), end=Line.reset, wait=True), "upstream_error"),
    ("ended early", streamed(chunk_of("Hel"), end=Line.end_stream, wait=True), "upstream_error"),
    ("stall", streamed(chunk_of("Hel"), end=lambda line: line.wait_until_peer_leaves() and None), "backend_timeout"),
    (
        "malformed event",
        streamed(chunk_of("Hel"), "{nonsense", chunk_of("lo", finish="stop"), "[DONE]", end=Line.end_stream),
        "upstream_error",
    ),
    ("error event", streamed(chunk_of("Hel"), {"error": {"message": "gone"}}, end=Line.end_stream), "upstream_error"),
]


@pytest.mark.parametrize(("script", "code"), [row[1:] for row in MIDDLE], ids=[row[0] for row in MIDDLE])
def test_a_stream_that_breaks_ends_in_one_error_event_and_never_in_done(
    http: httpx.Client, provider: Provider, script: Callable[[Received, Line], None], code: str
) -> None:
    provider.script = script
    first_seen.clear()
    seen = []
    with http.stream("POST", CHAT, json=ASK | {"stream": True}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            seen += [json.loads(line.removeprefix("data: "))] if line else []
            first_seen.set()
    assert seen[0]["choices"][0]["delta"]["content"] == "Hel"
    assert seen[-1]["error"]["code"] == code
    assert len(seen) == 2


def test_the_sdk_raises_on_a_broken_stream(gateway: Gateway, provider: Provider) -> None:
    provider.script = streamed(chunk_of("Hel"), end=Line.reset, wait=True)
    first_seen.clear()
    with gateway.sdk() as client, client.chat.completions.create(**ASK, stream=True) as stream:
        assert next(stream).choices[0].delta.content == "Hel"
        first_seen.set()
        with pytest.raises(openai.APIError):
            next(stream)


def test_a_complete_stream_without_done_gets_one(http: httpx.Client, provider: Provider) -> None:
    provider.script = streamed(chunk_of("Hello"), chunk_of("", finish="stop"), end=Line.end_stream)
    assert events(ask(http, stream=True))[-1] == "[DONE]"


def test_nobody_there_is_503_and_another_station_of_the_route_answers(http: httpx.Client, provider: Provider) -> None:
    refused = http.post(CHAT, json=ASK | {"model": "nowhere"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
    provider.script = lambda request, line: line.answer(200, answer_of("second"))
    answer = http.post(CHAT, json=ASK | {"model": "safe"})
    assert answer.json()["choices"][0]["message"]["content"] == "second"
    assert answer.headers["x-chasqui-attempts"] == "2"
    assert answer.headers["x-chasqui-backend"] == "far"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_before_the_first_byte_closes_the_upstream(
    gateway: Gateway, upstream: Upstream, provider: Provider, stream: bool
) -> None:
    left = threading.Event()
    upstream.arrived.clear()

    def script(request: Received, line: Line) -> None:
        if line.wait_until_peer_leaves():
            left.set()

    provider.script = script
    connection = httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {gateway.key}"}, timeout=0.2)
    with connection, pytest.raises(httpx.ReadTimeout):
        connection.post(CHAT, json=ASK | {"stream": stream})
    assert left.wait(5.0)


def test_embeddings_of_an_upstream_are_cached_per_item(
    http: httpx.Client, upstream: Upstream, provider: Provider
) -> None:
    def script(request: Received, line: Line) -> None:
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), 1.0]}
            for index, text in enumerate(request.json["input"])
        ]
        line.answer(
            200, json.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode()
        )

    provider.script = script
    first = http.post("/v1/embeddings", json={"model": "embed", "input": ["a", "bb", "a"], "dimensions": 2}).json()
    second = http.post("/v1/embeddings", json={"model": "embed", "input": ["ccc", "bb"], "dimensions": 2})
    assert [item["embedding"][0] for item in first["data"]] == [1, 2, 1]
    assert upstream.received[-1].json["input"] == ["ccc"]
    assert upstream.received[-1].json["dimensions"] == 2
    assert [item["embedding"][0] for item in second.json()["data"]] == [3, 2]
    assert second.headers["x-chasqui-cache"] == "partial"


def test_an_upstream_that_gives_too_few_embeddings_is_an_error_and_nothing_is_cached(
    http: httpx.Client, provider: Provider
) -> None:
    provider.script = lambda request, line: line.answer(200, b'{"data": [], "usage": {"prompt_tokens": 1}}')
    for _ in range(2):
        assert http.post("/v1/embeddings", json={"model": "embed", "input": ["zz"]}).status_code == 502


def test_usage_that_cannot_be_is_not_believed(http: httpx.Client, provider: Provider) -> None:
    usage = {"prompt_tokens": -5, "completion_tokens": 10**30, "total_tokens": 1}
    provider.script = lambda request, line: line.answer(200, answer_of("hello", usage=usage))
    assert ask(http, stream=False).status_code == 200
    assert "chasqui_tokens_total" in http.get("/metrics").text


def test_comments_alone_are_no_answer(http: httpx.Client, provider: Provider) -> None:
    stop = threading.Event()

    def script(request: Received, line: Line) -> None:
        line.start_stream()
        while not stop.wait(0.05):
            line.chunk(b": still here\n\n")

    provider.script = script
    answer = ask(http, stream=True)
    stop.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "backend_timeout")


def test_no_address_of_an_upstream_reaches_a_client(http: httpx.Client, upstream: Upstream, provider: Provider) -> None:
    provider.script = lambda request, line: line.send(b"nonsense\r\n\r\n")
    for answer in (ask(http, stream=False), http.post(CHAT, json=ASK | {"model": "nowhere"})):
        assert "127.0.0.1" not in answer.text
        assert str(upstream.port) not in answer.text


def failing_first(times: int, failure: Callable[[Received, Line], None]) -> Callable[[Received, Line], None]:
    left = [times]

    def script(request: Received, line: Line) -> None:
        if left[0] > 0:
            left[0] -= 1
            failure(request, line)
        elif request.json.get("stream"):
            streamed(chunk_of("third", finish="stop"), "[DONE]", end=Line.end_stream)(request, line)
        else:
            line.answer(200, answer_of("third"))

    return script


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "failure",
    [error(500), error(429, headers={"retry_after": "0"}), lambda request, line: line.reset()],
    ids=["500", "429 with retry-after", "reset"],
)
def test_a_backend_that_fails_twice_is_asked_a_third_time(
    http: httpx.Client, provider: Provider, failure: Callable[[Received, Line], None], stream: bool
) -> None:
    provider.script = failing_first(2, failure)
    answer = ask(http, stream=stream, model="stubborn")
    assert (answer.status_code, answer.headers["x-chasqui-attempts"]) == (200, "3")
    assert "third" in answer.text


@pytest.mark.parametrize(
    ("failure", "status", "attempts"),
    [(error(500), 502, 3), (error(400), 400, 1), (error(429, headers={"retry_after": "11"}), 429, 1)],
    ids=["too often", "the client's fault", "a retry-after above ten seconds"],
)
def test_what_is_not_retried(
    http: httpx.Client, provider: Provider, failure: Callable[[Received, Line], None], status: int, attempts: int
) -> None:
    provider.script = failing_first(10, failure)
    answer = ask(http, stream=False, model="stubborn")
    assert (answer.status_code, answer.headers["x-chasqui-attempts"]) == (status, str(attempts))


def test_nothing_is_retried_after_the_first_byte(http: httpx.Client, upstream: Upstream, provider: Provider) -> None:
    provider.script = streamed(chunk_of("Hel"), "{nonsense", end=Line.end_stream)
    before = len(upstream.received)
    assert "error" in events(ask(http, stream=True, model="stubborn"))[-1]
    assert len(upstream.received) == before + 1


def test_a_list_of_prompts_is_complete_only_with_an_answer_to_each(http: httpx.Client, provider: Provider) -> None:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        line.event({"id": "c", "model": "m", "choices": [{"index": 0, "text": "one", "finish_reason": "stop"}]})
        line.end_stream()

    provider.script = script
    answer = http.post("/v1/completions", json={"model": "far", "prompt": ["a", "b"], "stream": True})
    assert "error" in events(answer)[-1]


def test_a_backend_that_keeps_failing_is_left_alone(http: httpx.Client, upstream: Upstream, provider: Provider) -> None:
    provider.script = error(500)
    assert [ask(http, stream=False, model="guarded").status_code for _ in range(3)] == [502] * 3
    before = len(upstream.received)
    for stream in (False, True):
        refused = ask(http, stream=stream, model="guarded")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert len(upstream.received) == before
    assert http.get("/health/ready").json()["backends"]["guarded"] == "failed"
