"""A worker on another machine as a node: it tells what it does, and takes another model in when it is told to."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.llamacpp.synthetic import write_synthetic
from gateway.reranking import usage_of
from tests.backends.llamacpp.rerank_gguf import write_reranker
from tests.backends.llamacpp.test_endurance import with_doubles
from tests.clients.test_worker_as_upstream import ASK, KEY, tcp_worker
from tests.running import Gateway, running


@pytest.fixture(scope="module")
def gateway(synthetic_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    models = tmp_path_factory.mktemp("node")
    shutil.copy(synthetic_gguf, models / "first.gguf")
    write_synthetic(models / "second.gguf", seed=21)
    (models / "broken.gguf").write_bytes((models / "first.gguf").read_bytes()[:4096])
    with_doubles(synthetic_gguf, models / "doubles.gguf")
    with tcp_worker(models / "first.gguf", "--name", "far", "--context-tokens", "512") as url:
        far = {"engine": "openai", "base_url": url, "api_key_env": "WORKER_KEY", "node": True}
        config = {
            "backends": [{"name": "far", **far}, {"name": "gone", **far, "base_url": "http://127.0.0.1:9/v1"}],
            "models": [{"name": "far", "route": ["far"]}],
            "roles": [{"name": "default"}, {"name": "others"}],
        }
        with running(tmp_path_factory.mktemp("gateway"), config, {"WORKER_KEY": KEY}) as gateway:
            yield gateway


def say(http: httpx.Client) -> str:
    answer = http.post(
        "/v1/chat/completions", json={"model": "far", "messages": ASK, "max_tokens": 8, "temperature": 0}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def order(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/admin/backends/far", json=fields)


def test_a_node_tells_what_it_is_at_work_on(gateway: Gateway) -> None:
    with gateway.http as http:
        say(http)
        far, gone = (one["worker"] for one in http.get("/admin/backends").json()["data"])
    assert (far["model"], far["slots"], far["running"], far["context_tokens"]) == ("far", 4, 0, 512)
    assert far["memory_bytes"] > 10_000_000
    assert far["tokens_per_second"] > 0
    assert gone["status"] == "failed"


def test_a_node_unloads_loads_and_swaps_its_model(gateway: Gateway) -> None:
    with gateway.http as http:
        before = say(http)
        assert order(http, action="unload").json()["worker"]["status"] == "asleep"
        assert say(http) == before, "the next request loads it"
        assert order(http, action="swap", model="second.gguf").status_code == 200
        assert (after := say(http)) != before
        refused = order(http, action="swap", model="../first.gguf")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
        broken = order(http, action="swap", model="broken.gguf")
        assert (broken.status_code, "broken.gguf cannot be run here" in broken.text) == (503, True)
        assert say(http) == after, "the old one is back"
        deadly = order(http, action="swap", model="doubles.gguf")
        assert (deadly.status_code, "cannot be run here" in deadly.text) == (503, True)
        assert say(http) == after, "the node has not died of it"


def cached(gateway: Gateway, key: str, words: str) -> int:
    body = {"model": "far", "messages": [{"role": "user", "content": words}], "max_tokens": 2}
    with gateway.http as http:
        http.headers["authorization"] = f"Bearer {key}"
        usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_tenants_of_a_node_do_not_learn_what_others_asked(gateway: Gateway) -> None:
    ours, colleague, stranger = gateway.new_key(), gateway.new_key(), gateway.new_key(role="others")
    words = "a secret of ours that runs over the high bridge"
    assert cached(gateway, ours, words) < 10
    assert cached(gateway, stranger, words) < 10
    assert cached(gateway, colleague, words) > 10


def test_who_does_not_say_who_asks_shares_with_nobody(gateway: Gateway) -> None:
    url = gateway.services.loaded.settings.backends[0].base_url  # type: ignore[union-attr]
    headers = {"authorization": f"Bearer {KEY}"}
    body = {
        "messages": [{"role": "user", "content": "the same words, the same words, the same words"}],
        "max_tokens": 2,
    }
    with httpx.Client(headers=headers, timeout=30) as http:
        usages = [http.post(f"{url}/chat/completions", json=body).json()["usage"] for _ in range(2)]
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 0]


def test_without_the_key_nothing_is_loaded(gateway: Gateway) -> None:
    url = gateway.services.loaded.settings.backends[0].base_url  # type: ignore[union-attr]
    with gateway.http as http, httpx.Client(timeout=30) as stranger:
        assert order(http, action="unload").status_code == 200
        assert stranger.get(f"{url}/anything").status_code == 401
        assert stranger.post(f"{url}/load").status_code == 401
        assert stranger.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
        assert http.get("/admin/backends/far").json()["status"] == "asleep"
        assert order(http, action="load").json()["status"] == "ready"
        assert http.get("/admin/backends/gone").json()["status"] == "failed"
        assert order(http, action="swap", model="x" * 300 + ".gguf").status_code == 400


def test_a_reranker_elsewhere_is_an_upstream_like_any_other(tmp_path: Path) -> None:
    model = write_reranker(tmp_path / "rerank.gguf")
    with tcp_worker(model, "--name", "ranks", "--serves", "rerank") as url:
        config = {
            "backends": [{"name": "far", "engine": "openai", "base_url": url, "api_key_env": "WORKER_KEY"}],
            "models": [{"name": "ranker", "route": [{"backend": "far", "model": "ranks"}]}],
            "roles": [{"name": "default", "limits": [{"per": "1h", "tokens": 1000}]}],
        }
        body = {"model": "ranker", "query": "high road", "documents": ["the road rises", "stone"], "top_n": 1}
        with running(tmp_path, config, {"WORKER_KEY": KEY}) as gateway, gateway.http as http:
            http.headers["authorization"] = f"Bearer {gateway.new_key()}"
            answer = http.post("/v1/rerank", json=body)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["results"]) == 1
            assert answer.json()["model"] == "ranker"
            used = answer.json()["usage"]["total_tokens"]
            http.headers["authorization"] = f"Bearer {gateway.key}"
            deadline_s = time.monotonic() + 10
            while (row := http.get(f"/admin/requests/{answer.headers['x-request-id']}").json()).get("usage") is None:
                assert time.monotonic() < deadline_s
            assert row["usage"]["prompt_tokens"] == used
            assert row["operation"] == "rerank"


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (b'{"usage": {"total_tokens": 7}}', 7),
        (b'{"usage": {"prompt_tokens": 5, "total_tokens": 7}}', 5),
        (b'{"meta": {"billed_units": {"search_units": 1}}}', None),
        (b'{"usage": {"total_tokens": -1}}', None),
        (b'{"usage": {"total_tokens": "many"}}', None),
    ],
)
def test_providers_count_in_their_own_words(answer: bytes, tokens: int | None) -> None:
    usage = usage_of(answer)
    assert (usage.prompt_tokens if usage is not None else None) == tokens
