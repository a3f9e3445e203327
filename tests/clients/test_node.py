"""A worker on another machine as a node: it tells what it does, and takes another model in when it is told to."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.llamacpp.synthetic import write_synthetic
from tests.clients.test_worker_as_upstream import ASK, KEY, tcp_worker
from tests.running import Gateway, running


@pytest.fixture(scope="module")
def gateway(synthetic_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    models = tmp_path_factory.mktemp("node")
    shutil.copy(synthetic_gguf, models / "first.gguf")
    write_synthetic(models / "second.gguf", seed=21)
    (models / "broken.gguf").write_bytes((models / "first.gguf").read_bytes()[:4096])
    with tcp_worker(models / "first.gguf", "--name", "far", "--context-tokens", "512") as url:
        far = {"engine": "openai", "base_url": url, "api_key_env": "WORKER_KEY", "node": True}
        config = {
            "backends": [{"name": "far", **far}, {"name": "gone", **far, "base_url": "http://127.0.0.1:9/v1"}],
            "models": [{"name": "far", "route": ["far"]}],
            "roles": [{"name": "default"}],
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
        assert broken.status_code in (502, 503)
        assert say(http) == after, "the old one is back"
