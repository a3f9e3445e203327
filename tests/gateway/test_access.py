"""Which stations of a route a request may reach: the role's backends, and documents that stay on this machine."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.upstream import Upstream, answer_of, playing
from tests.gateway.conftest import wait_for_collection
from tests.running import Gateway, running

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with playing(lambda request, line: line.answer(200, answer_of("from far away"))) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, minilm_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("access")
    (home / "secret.md").write_text("# Recipe\n\nThe secret ingredient is muña.")
    collection = {"embed": "minilm", "paths": [f"{home}/*.md"]}
    config = {
        "backends": [
            {"name": "far", "engine": "openai", "base_url": upstream.base_url},
            {"name": "minilm", "engine": "llama_cpp", "model": str(minilm_gguf), "serves": "embeddings"},
            {"name": "quote", "engine": "quote"},
        ],
        "models": [
            {"name": "open", "collections": ["open"], "route": ["far", "quote"]},
            {"name": "closed", "collections": ["closed"], "route": ["far", "quote"]},
            {"name": "closed-far", "collections": ["closed"], "route": ["far"]},
            {"name": "far", "route": ["far"]},
        ],
        "collections": [{"name": "open", **collection}, {"name": "closed", **collection, "local_only": True}],
        "roles": [
            {"name": "default", "collections": ["*"]},
            {"name": "local", "collections": ["*"], "backends": ["quote", "minilm"]},
        ],
    }
    with running(home, config) as gateway:
        wait_for_collection(gateway)
        yield gateway


def ask(gateway: Gateway, model: str, role: str = "default") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "What is the secret ingredient?"}]}
    headers = {"authorization": f"Bearer {gateway.new_key(role=role)}"}
    return httpx.post(f"{gateway.url}{CHAT}", json=body, headers=headers, timeout=30)


def test_an_upstream_is_shown_the_passages_of_a_collection_that_may_leave(gateway: Gateway, upstream: Upstream) -> None:
    assert ask(gateway, "open").headers["x-chasqui-backend"] == "far"
    assert "muña" in upstream.received[-1].json["messages"][-1]["content"]


def test_passages_that_must_stay_are_shown_to_local_engines_only(gateway: Gateway, upstream: Upstream) -> None:
    before = len(upstream.received)
    answer = ask(gateway, "closed")
    assert answer.headers["x-chasqui-backend"] == "quote"
    assert "muña" in answer.text
    refused = ask(gateway, "closed-far")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
    assert len(upstream.received) == before


def test_a_role_reaches_only_the_backends_that_it_names(gateway: Gateway, upstream: Upstream) -> None:
    before = len(upstream.received)
    assert ask(gateway, "open", role="local").headers["x-chasqui-backend"] == "quote"
    assert ask(gateway, "far", role="local").status_code == 404
    assert len(upstream.received) == before
