"""Passages put in order by a real model that reads them, and left as they are when it cannot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.backends.llamacpp.rerank_gguf import write_reranker
from tests.gateway.conftest import wait_for_collection
from tests.running import Gateway, running

TEXTS = {
    "river.md": "the river falls low",
    "sun.md": "the sun rises high",
    "bridge.md": "the stone bridge",
    "long.md": "the road " * 100,  # more than the model's window of 64 tokens
}
ASK: list[Any] = [{"role": "user", "content": "the river"}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, minilm_gguf: Path) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("reranked")
    (home / "texts").mkdir()
    for name, text in TEXTS.items():
        (home / "texts" / name).write_text(text)
    write_reranker(home / "rerank.gguf")
    local = {"engine": "llama_cpp"}
    collection = {"collections": ["texts"], "route": ["quote"]}
    config = {
        "backends": [
            {"name": "minilm", "model": str(minilm_gguf), "serves": "embeddings", **local},
            {"name": "judge", "model": str(home / "rerank.gguf"), "serves": "rerank", **local},
            {"name": "gone", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"},
            {"name": "quote", "engine": "quote"},
        ],
        "models": [
            {"name": "judged", "retrieval": {"rerank": "judge"}, **collection},
            {"name": "unjudged", "retrieval": {"rerank": "gone"}, **collection},
            {"name": "ranker", "route": ["judge"]},
        ],
        "collections": [{"name": "texts", "embed": "minilm", "paths": [f"{home}/texts/*"]}],
        "roles": [{"name": "default", "collections": ["*"]}],
    }
    with running(home, config) as gateway:
        wait_for_collection(gateway)
        yield gateway


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.sdk(gateway.new_key(role="default")) as client:
        yield client


def told(client: openai.OpenAI, model: str, **retrieval: Any) -> Any:
    extra = {"include": ["retrieval"], "retrieval": retrieval}
    return client.chat.completions.create(model=model, messages=ASK, extra_body=extra).to_dict()["retrieval"]


def test_the_model_decides_the_order_and_the_scores(client: openai.OpenAI) -> None:
    plain, judged = told(client, "judged", rerank=False), told(client, "judged")
    assert {one["filename"] for one in judged["passages"]} == {one["filename"] for one in plain["passages"]}
    scores = [one["score"] for one in judged["passages"]]
    assert scores == sorted(scores, reverse=True)
    assert scores != [one["score"] for one in plain["passages"]]
    assert judged["degraded"] == []


def test_a_model_that_does_not_answer_leaves_them_as_they_were_found_and_that_is_said(client: openai.OpenAI) -> None:
    plain, unjudged = told(client, "unjudged", rerank=False), told(client, "unjudged")
    assert unjudged["passages"] == plain["passages"]
    assert unjudged["degraded"] == ["rerank"]


def test_a_search_over_the_api_names_the_model(client: openai.OpenAI) -> None:
    options: Any = {"ranker": "judge"}
    found = client.vector_stores.search("texts", query="the river", ranking_options=options).data
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert {one.score for one in found} == {one["score"] for one in told(client, "judged")["passages"]}
