"""Limits over HTTP: exact under concurrency, settled on what was used, with headers that tell."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from gateway.journal import Begin, End, read
from tests.faults.upstream import Line, Received, Upstream, answer_of, chunk_of, playing
from tests.running import Gateway, running

CHAT = "/v1/chat/completions"
ASK = {"model": "guide", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, "temperature": 0}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with playing(lambda request, line: line.answer(200, answer_of("hello"))) as upstream:
        yield upstream


@pytest.fixture
def limited(tmp_path: Path, upstream: Upstream, synthetic_gguf: Path) -> Iterator[Gateway]:
    config = {
        "backends": [
            {"name": "up", "engine": "openai", "base_url": upstream.base_url},
            {"name": "chat", "engine": "llama_cpp", "model": str(synthetic_gguf), "context_tokens": 512},
        ],
        "models": [
            {"name": "up", "route": ["up"]},
            {"name": "guide", "route": ["chat"]},
            {"name": "short", "route": ["chat"], "default_max_tokens": 7},
        ],
        "roles": [{"name": "default", "limits": [{"concurrent": 64}]}],
    }
    with running(tmp_path, config) as gateway:
        yield gateway


def asking(gateway: Gateway, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def test_as_many_requests_as_allowed_are_answered_and_not_one_more(limited: Gateway) -> None:
    """32 clients at once, a limit of 100, 160 requests."""
    key = limited.new_key(limits=[{"per": "1h", "requests": 100}])
    statuses: list[int] = []

    def client() -> None:
        with asking(limited, key) as http:
            for _ in range(5):
                statuses.append(http.post(CHAT, json={"model": "up", "messages": []}).status_code)

    threads = [threading.Thread(target=client) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(statuses) == {200: 100, 429: 60}


def test_a_refused_request_is_told_when_to_come_back(limited: Gateway) -> None:
    with asking(limited, limited.new_key(limits=[{"per": "1h", "requests": 1}])) as http:
        first = http.post(CHAT, json=ASK)
        second = http.post(CHAT, json=ASK)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-reset-requests"].startswith("1h")
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert second.status_code == 429
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert second.json()["error"]["type"] == "rate_limit_error"
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert 3500 < int(second.headers["retry-after"]) <= 3661


def test_tokens_are_settled_at_what_the_answer_really_used(limited: Gateway) -> None:
    with asking(limited, limited.new_key(limits=[{"per": "1h", "tokens": 1000}])) as http:
        first = http.post(CHAT, json=ASK)
        used = first.json()["usage"]["total_tokens"]
        second = http.post(CHAT, json=ASK)
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 1000 - used
    held = 1000 - used - int(second.headers["x-ratelimit-remaining-tokens"])
    assert held == used


def test_a_prompt_with_its_longest_answer_must_fit_before_anything_is_computed(limited: Gateway) -> None:
    with asking(limited, limited.new_key(limits=[{"per": "1h", "tokens": 40}])) as http:
        assert http.post(CHAT, json=ASK | {"max_tokens": 100}).status_code == 429
        assert http.post(CHAT, json=ASK).status_code == 200


def test_a_request_that_can_never_fit_says_so(limited: Gateway) -> None:
    with asking(limited, limited.new_key(limits=[{"per": "1h", "tokens": 40}])) as http:
        answer = http.post(CHAT, json=ASK | {"max_tokens": 100})
    assert "larger than the limit" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "3600"


def test_without_a_maximum_a_local_model_stops_where_the_model_says(limited: Gateway) -> None:
    body = {"model": "short", "messages": ASK["messages"], "temperature": 0}
    with limited.http as http:
        assert http.post(CHAT, json=body).json()["usage"]["completion_tokens"] == 7


def test_concurrency_is_given_back_on_every_way_out(tmp_path: Path) -> None:
    release = threading.Event()

    def slow(request: Received, line: Line) -> None:
        if request.json.get("user") == "break":
            line.reset()
            return
        assert release.wait(10)
        line.answer(200, answer_of("done"))

    with playing(slow) as upstream:
        config = {
            "backends": [{"name": "up", "engine": "openai", "base_url": upstream.base_url}],
            "models": [{"name": "up", "route": ["up"]}],
            "roles": [{"name": "default"}],
        }
        with running(tmp_path, config) as gateway:
            key = gateway.new_key(limits=[{"concurrent": 1}])
            body = {"model": "up", "messages": []}
            answers: list[int] = []

            def first() -> None:
                with asking(gateway, key) as http:
                    answers.append(http.post(CHAT, json=body).status_code)

            thread = threading.Thread(target=first)
            thread.start()
            assert upstream.arrived.wait(10)
            with asking(gateway, key) as http:
                assert http.post(CHAT, json=body).status_code == 429
                release.set()
                thread.join()
                assert http.post(CHAT, json=body | {"user": "break"}).status_code == 502
                assert http.post(CHAT, json=body).status_code == 200
            assert answers == [200]


def test_the_journal_has_a_begin_and_an_end_with_what_was_used(limited: Gateway) -> None:
    key = limited.new_key(limits=[{"per": "1h", "tokens": 1000}])
    with asking(limited, key) as http:
        good = http.post(CHAT, json=ASK)
        bad = http.post(CHAT, json=ASK | {"max_tokens": 400, "n": 2})
    lines = [line for file in (limited.home / "journal").iterdir() for line in read(file)]
    begin, end = (line for line in lines if line.id == good.headers["x-request-id"])
    assert isinstance(begin, Begin)
    assert isinstance(end, End)
    assert begin.held_tokens >= good.json()["usage"]["total_tokens"]
    assert (end.outcome, end.status, end.backend) == ("complete", 200, "chat")
    assert end.completion_tokens == good.json()["usage"]["completion_tokens"]
    assert bad.status_code in (200, 429)


def test_a_stream_that_is_left_is_settled_at_what_was_sent(tmp_path: Path) -> None:
    def endless(request: Received, line: Line) -> None:
        line.start_stream()
        for _ in range(3):
            line.event(chunk_of("four and twenty blackbirds "))
        if line.wait_until_peer_leaves():
            upstream.peer_left.set()

    with playing(endless) as upstream:
        config = {
            "backends": [{"name": "up", "engine": "openai", "base_url": upstream.base_url}],
            "models": [{"name": "up", "route": ["up"]}],
            "roles": [{"name": "default"}],
        }
        with running(tmp_path, config) as gateway:
            key = gateway.new_key(limits=[{"per": "1h", "tokens": 10_000}, {"concurrent": 1}])
            with asking(gateway, key) as http:
                with http.stream("POST", CHAT, json={"model": "up", "messages": [], "stream": True}) as stream:
                    next(stream.iter_lines())
                assert upstream.peer_left.wait(5.0), "the upstream's connection stays open after the client left"
                refused = http.post(CHAT, json={"model": "no-such", "messages": []})
                assert refused.status_code == 404
            ends = wait_for_end(gateway)
    assert ends[0].outcome == "client_left"
    assert 0 < ends[0].completion_tokens < 100


def wait_for_end(gateway: Gateway) -> list[End]:
    while True:
        lines = [line for file in (gateway.home / "journal").iterdir() for line in read(file)]
        if ends := [line for line in lines if isinstance(line, End)]:
            return ends


@pytest.mark.parametrize(
    "change", [{"prompt": ["a"] * 100, "max_tokens": 300}, {"prompt": ["a"] * 10, "n": 10, "max_tokens": 300}]
)
def test_every_prompt_of_a_legacy_completion_counts(limited: Gateway, change: dict[str, object]) -> None:
    with asking(limited, limited.new_key(limits=[{"per": "1h", "tokens": 500}])) as http:
        assert http.post("/v1/completions", json={"model": "guide"} | change).status_code == 429


@pytest.mark.parametrize("change", [{"max_tokens": -(10**9)}, {"n": -(10**6), "max_tokens": 500}, {"max_tokens": 500}])
def test_numbers_below_zero_hold_no_less_for_an_upstream(limited: Gateway, change: dict[str, object]) -> None:
    with asking(limited, limited.new_key(limits=[{"per": "1h", "tokens": 100}])) as http:
        assert http.post(CHAT, json={"model": "up", "messages": []} | change).status_code == 429


def test_a_journal_that_cannot_be_written_makes_the_gateway_unready(limited: Gateway) -> None:
    with limited.http as http:
        assert http.get("/health/ready").status_code == 200
        limited.services.house.journal.failing = True
        assert http.get("/health/ready").status_code == 503
        assert http.post(CHAT, json=ASK).status_code == 200  # a line that gets through clears it
        assert http.get("/health/ready").status_code == 200


USAGE = {"prompt_tokens": 10, "completion_tokens": 90, "total_tokens": 100}


@pytest.fixture
def priced(tmp_path: Path) -> Iterator[Gateway]:
    """An upstream that answers everything with a hundred tokens."""
    with playing(lambda _, line: line.answer(200, answer_of("hi", usage=USAGE))) as upstream:
        config = {
            "backends": [{"name": "up", "engine": "openai", "base_url": upstream.base_url}],
            "models": [{"name": "up", "route": ["up"], "price": {"per_request": 0.5}, "default_max_tokens": 90}],
            "roles": [{"name": "default"}],
        }
        with running(tmp_path, config) as gateway:
            yield gateway


def at_once(gateway: Gateway, key: str, number: int, ask: Callable[[httpx.Client], httpx.Response]) -> Counter[int]:
    def one(_: int) -> int:
        with asking(gateway, key) as http:
            return ask(http).status_code

    with ThreadPoolExecutor(number) as threads:
        return Counter(threads.map(one, range(number)))


def test_uploads_are_refused_when_the_money_is_gone(priced: Gateway) -> None:
    key = priced.new_key(limits=[{"per": "1h", "cost_usd": 1.0}])
    form = {"files": {"file": ("a.wav", b"x" * 100)}, "data": {"model": "up"}}
    statuses = at_once(priced, key, 8, lambda http: http.post("/v1/audio/transcriptions", **form))
    assert statuses == {200: 2, 429: 6}
    with asking(priced, key) as http:
        refused = http.post("/v1/audio/transcriptions", **form)
    assert refused.json()["error"]["code"] == "insufficient_quota"


def test_uploads_are_refused_when_no_token_is_left(priced: Gateway) -> None:
    form = {"files": {"file": ("a.wav", b"x" * 100)}, "data": {"model": "up"}}
    with asking(priced, priced.new_key(limits=[{"per": "1h", "tokens": 150}])) as http:
        statuses = [http.post("/v1/audio/transcriptions", **form).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


def test_a_response_without_a_maximum_holds_what_the_model_may_say(priced: Gateway) -> None:
    key = priced.new_key(limits=[{"per": "1h", "tokens": 400}])
    statuses = at_once(priced, key, 16, lambda http: http.post("/v1/responses", json={"model": "up", "input": "hi"}))
    assert statuses[200] <= 4


def test_of_two_maxima_the_larger_one_is_held(limited: Gateway) -> None:
    body = {"model": "up", "messages": [], "max_completion_tokens": 0, "max_tokens": 900}
    with asking(limited, limited.new_key(limits=[{"per": "1h", "tokens": 500}])) as http:
        assert http.post(CHAT, json=body).status_code == 429


def test_what_is_refused_for_its_tokens_is_no_request(limited: Gateway) -> None:
    limits = [{"per": "1h", "tokens": 100}, {"per": "1h", "requests": 2}]
    with asking(limited, limited.new_key(limits=limits)) as http:
        for model in ("up", "guide"):
            refused = http.post(CHAT, json={"model": model, "messages": ASK["messages"], "max_tokens": 400})
            assert (refused.status_code, "tokens" in refused.json()["error"]["message"]) == (429, True)
        statuses = [
            http.post(CHAT, json=ASK | {"model": "up", "max_tokens": 1, "messages": []}).status_code for _ in range(3)
        ]
    assert statuses == [200, 200, 429]


def test_a_limit_that_comes_back_knows_what_was_used_meanwhile(limited: Gateway) -> None:
    limits = [{"per": "1h", "requests": 10}]
    with limited.http as admin:
        made = admin.post("/admin/keys", json={"name": "k", "limits": limits}).json()
        with asking(limited, made["key"]) as http:
            body = {"model": "up", "messages": []}
            for wanted, number in ((limits, 4), ([], 4), (limits, 4)):
                admin.patch(f"/admin/keys/{made['id']}", json={"limits": wanted})
                statuses = [http.post(CHAT, json=body).status_code for _ in range(number)]
    assert statuses == [200, 200, 429, 429]


def test_a_client_who_leaves_pays_for_the_prompt_with_or_without_limits(tmp_path: Path) -> None:
    arrived = threading.Event()

    def silent(request: Received, line: Line) -> None:
        arrived.set()
        line.wait_until_peer_leaves()

    with playing(silent) as upstream:
        config = {
            "backends": [{"name": "up", "engine": "openai", "base_url": upstream.base_url}],
            "models": [{"name": "up", "route": ["up"], "price": {"input_per_m": 1000}}],
            "roles": [{"name": "default"}],
        }
        bodies = {
            CHAT: {"model": "up", "messages": [{"role": "user", "content": "x" * 4000}]},
            "/v1/embeddings": {"model": "up", "input": "x" * 4000},
        }
        with running(tmp_path, config) as gateway:
            for limits in ([], [{"per": "1h", "tokens": 100_000}]):
                for path, body in bodies.items():
                    arrived.clear()
                    key = gateway.new_key(limits=limits)
                    with pytest.raises(httpx.ReadTimeout), asking(gateway, key) as http:
                        http.post(path, json=body, timeout=0.5)
                    assert arrived.is_set()
            while (
                len(
                    ends := [
                        line
                        for file in (tmp_path / "journal").iterdir()
                        for line in read(file)
                        if isinstance(line, End)
                    ]
                )
                < 4
            ):
                pass
    for end in ends:
        assert end.outcome == "client_left"
        assert 1000 <= end.prompt_tokens <= 1100
        assert end.cost >= 1_000_000_000 // 1000 * 1000
