"""Local engines through a whole gateway: tools, schemas, rerank, and models in and out of memory over /admin."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest

from backends.llamacpp.synthetic import write_synthetic
from tests.backends.llamacpp.rerank_gguf import write_reranker
from tests.backends.llamacpp.test_tools import LOOK, NAMED
from tests.running import Gateway, running

HELLO: Any = [{"role": "user", "content": "Look at the road, in JSON"}]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, synthetic_gguf: Path) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("engines")
    write_reranker(home / "rerank.gguf")
    write_synthetic(home / "other.gguf", seed=11)
    chat = {"engine": "llama_cpp", "model": str(synthetic_gguf), "context_tokens": 2048}
    config = {
        "backends": [
            {"name": "chat", **chat},
            {"name": "early", "preload": True, "pinned": True, **chat},
            {"name": "rerank", "engine": "llama_cpp", "model": "rerank.gguf", "serves": "rerank"},
            {"name": "quote", "engine": "quote"},
        ],
        "models": [
            {"name": "guide", "route": ["chat"]},
            {"name": "early", "route": ["early"]},
            {"name": "ranker", "route": ["rerank"]},
            {"name": "quote", "route": ["quote"]},
        ],
        "roles": [{"name": "default", "limits": [{"per": "1h", "tokens": 100000}]}],
    }
    with running(home, config) as gateway:
        yield gateway


class Person(pydantic.BaseModel):
    age: int = pydantic.Field(ge=1, le=9)
    road: bool


def test_the_sdk_parses_answers_into_models(house: Gateway) -> None:
    with house.sdk() as client:
        answer = client.chat.completions.parse(model="guide", messages=HELLO, response_format=Person, max_tokens=100)
    assert isinstance(answer.choices[0].message.parsed, Person)


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_gets_calls_of_tools(house: Gateway, stream: bool) -> None:
    options: Any = {"model": "guide", "messages": HELLO, "tools": [LOOK], "tool_choice": NAMED, "max_tokens": 150}
    with house.sdk(house.new_key()) as client:
        if stream:
            with client.chat.completions.stream(**options) as events:
                message: Any = events.get_final_completion().choices[0].message
        else:
            message = client.chat.completions.create(**options).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "look"
    assert json.loads(call.function.arguments)["at"] in ("road", "river")


def test_logprobs_and_timings_arrive_at_the_client(house: Gateway) -> None:
    with house.sdk() as client:
        answer = client.chat.completions.create(
            model="guide", messages=HELLO, logprobs=True, top_logprobs=2, max_tokens=3
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert [len(token.top_logprobs) for token in logprobs.content or []] == [2, 2, 2]
    assert answer.model_extra is not None
    assert answer.model_extra["timings"]["predicted_n"] == 3


def rerank(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "ranker", "query": "high road", "documents": ["stone bridge", "the road rises"]} | fields
    return http.post("/v1/rerank", json=body)


def test_documents_are_ranked_and_their_tokens_settled(house: Gateway) -> None:
    key = house.new_key()
    with house.http as http:
        http.headers["authorization"] = f"Bearer {key}"
        answer = rerank(http)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["model"] == "ranker"
        assert {result["index"] for result in body["results"]} == {0, 1}
        tokens = body["usage"]["total_tokens"]
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert 100_000 - left >= tokens > 0
        assert answer.headers["x-chasqui-backend"] == "rerank"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"documents": []}, 400, "invalid_value", "documents"),
        ({"query": None}, 400, "missing_required_parameter", "query"),
        ({"model": "guide"}, 400, "invalid_value", "model"),
        ({"model": "quote"}, 400, "invalid_value", "model"),
        ({"model": "nothing"}, 404, "model_not_found", "model"),
        ({"documents": ["road " * 100]}, 400, "context_length_exceeded", "documents[0]"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    house: Gateway, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    with house.http as http:
        answer = rerank(http, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


def backend(http: httpx.Client, name: str) -> dict[str, Any]:
    answer = http.get(f"/admin/backends/{name}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def order(http: httpx.Client, name: str, **fields: Any) -> httpx.Response:
    return http.post(f"/admin/backends/{name}", json=fields)


def say(http: httpx.Client, model: str = "guide") -> str:
    body = {"model": model, "messages": HELLO, "max_tokens": 8, "temperature": 0}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_models_go_in_and_out_of_memory_on_order(house: Gateway) -> None:
    with house.http as http:
        before = say(http)
        told = backend(http, "chat")["worker"]
        assert (told["status"], told["serves"], told["slots"]) == ("ready", "chat", 4)
        assert told["memory_bytes"] > 10_000_000
        assert order(http, "chat", action="unload").json()["status"] == "asleep"
        assert order(http, "chat", action="load").json()["status"] == "ready"
        swapped = order(http, "chat", action="swap", model="other.gguf").json()
        assert swapped["worker"]["file"] == "other.gguf"
        assert say(http) != before
        changes = [row["action"] for row in http.get("/admin/audit").json()["data"]][:3]
        assert changes == ["backend.swap", "backend.load", "backend.unload"]


@pytest.mark.parametrize(
    ("name", "fields", "status", "param"),
    [
        ("nobody", {"action": "load"}, 404, None),
        ("quote", {"action": "load"}, 400, "action"),
        ("chat", {"action": "explode"}, 400, "action"),
        ("chat", {"action": "swap"}, 400, "model"),
        ("chat", {"action": "load", "model": "x"}, 400, "model"),
        ("chat", {"action": "swap", "model": "nowhere.gguf"}, 400, "model"),
        ("chat", {"action": "swap", "model": "x" * 300 + ".gguf"}, 400, "model"),
        ("chat", {"action": "swap", "model": "\x00"}, 400, "model"),
    ],
)
def test_orders_that_cannot_be_are_refused(
    house: Gateway, name: str, fields: dict[str, Any], status: int, param: str | None
) -> None:
    with house.http as http:
        answer = order(http, name, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_all_backends_are_listed_and_only_for_administrators(house: Gateway) -> None:
    with house.http as http:
        listed = {one["id"]: one for one in http.get("/admin/backends").json()["data"]}
        assert list(listed) == ["chat", "early", "rerank", "quote"]
        assert listed["quote"]["worker"] is None
        http.headers["authorization"] = f"Bearer {house.new_key()}"
        assert http.get("/admin/backends").status_code == 403
        assert order(http, "chat", action="unload").status_code == 403
        assert http.delete("/admin/ram-disk").status_code == 403


def test_a_preloaded_model_is_there_before_anybody_asks(house: Gateway) -> None:
    deadline_s = time.monotonic() + 30
    with house.http as http:
        while (told := backend(http, "early"))["status"] != "ready":
            assert time.monotonic() < deadline_s
        assert told["worker"]["counters"]["finished"] == 0
        assert told["worker"]["pinned"] is True


def test_what_engines_count_is_scraped(house: Gateway) -> None:
    with house.http as http:
        say(http)
        backend(http, "chat")  # asks the worker, as the fleet does every second
        lines = dict(
            line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if line.startswith("chasqui_engine")
        )
    assert float(lines['chasqui_engine_tokens_total{backend="chat",kind="generated"}']) >= 8
    assert float(lines['chasqui_engine_busy_seconds_total{backend="chat"}']) > 0
    assert float(lines['chasqui_engine_memory_bytes{backend="chat"}']) > 10_000_000
    assert 'chasqui_engine_tokens_total{backend="rerank",kind="embedded"}' in lines


def test_the_ram_disk_is_listed_and_cleared(house: Gateway) -> None:
    with house.http as http:
        assert http.get("/admin/ram-disk").json()["object"] == "list"
        assert http.delete("/admin/ram-disk").status_code == 200


def cached(gateway: Gateway, key: str, *messages: dict[str, str]) -> int:
    body = {"model": "handbook-chat", "messages": messages, "max_tokens": 2}
    with gateway.http as http:
        http.headers["authorization"] = f"Bearer {key}"
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_passages_are_shared_by_all_who_read_them_unless_a_client_said_something_before(gateway: Gateway) -> None:
    ours, theirs = gateway.new_key(), gateway.new_key(role="readers")
    question = {"role": "user", "content": "How far did a runner run before the next one took over?"}
    secret = {"role": "system", "content": "A secret of one tenant stands here, before everything else."}
    cached(gateway, ours, question)
    assert cached(gateway, theirs, question) > 100
    cached(gateway, ours, secret, question)
    assert cached(gateway, theirs, secret, question) < 20


def test_what_is_ranked_is_held_before_it_is_read(house: Gateway) -> None:
    """The query counts with each document."""
    key = house.new_key(limits=[{"per": "1h", "tokens": 40}])
    with house.http as http:
        http.headers["authorization"] = f"Bearer {key}"
        few = rerank(http, documents=["stone"])
        many = rerank(http, documents=["stone"] * 20)
    assert (few.status_code, many.status_code) == (200, 429), (few.text, many.text)
