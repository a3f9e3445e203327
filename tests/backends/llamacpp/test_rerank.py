"""Rerank and truncated embeddings of real workers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import RERANK, Call
from backends.errors import BackendUnavailable, UpstreamRefused
from backends.llamacpp.backend import LocalBackend
from tests.backends.llamacpp.local import call, chat, embedding, running
from tests.backends.llamacpp.rerank_gguf import write_reranker

pytestmark = pytest.mark.anyio

DOCUMENTS = ["the road rises", "stone bridge", "the sun falls", "high river low river", "stone bridge"]


@pytest.fixture(scope="module")
async def reranker(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBackend]:
    path = write_reranker(tmp_path_factory.mktemp("rerank") / "rerank.gguf")
    async with running(path, serves="rerank") as backend:
        yield backend


def rerank(**fields: Any) -> Call:
    return call(RERANK, **({"query": "the high road", "documents": DOCUMENTS} | fields))


async def ranked(backend: LocalBackend, **fields: Any) -> dict[str, Any]:
    return dict(json.loads((await backend.complete(rerank(**fields))).body))


async def test_documents_come_back_by_relevance(reranker: LocalBackend) -> None:
    answer = await ranked(reranker)
    scores = [result["relevance_score"] for result in answer["results"]]
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2, 3, 4]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert len({round(score, 6) for score in scores}) == 4, "the same text twice has the same score twice"
    assert answer["model"] == "ours"
    assert answer["usage"]["total_tokens"] > 20


async def test_a_score_does_not_depend_on_the_others(reranker: LocalBackend) -> None:
    together = {one["index"]: one["relevance_score"] for one in (await ranked(reranker))["results"]}
    for place, document in enumerate(DOCUMENTS):
        (alone,) = (await ranked(reranker, documents=[document]))["results"]
        assert alone["relevance_score"] == pytest.approx(together[place], abs=1e-4)


async def test_some_of_them_with_their_texts(reranker: LocalBackend) -> None:
    objects = [{"text": document} for document in DOCUMENTS]
    answer = await ranked(reranker, documents=objects, top_n=2, return_documents=True)
    assert len(answer["results"]) == 2
    assert all(one["document"] == objects[one["index"]] for one in answer["results"])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"documents": []}, "documents", "invalid_value"),
        ({"documents": ["fine", 5]}, "documents[1]", "invalid_value"),
        ({"query": None}, "query", "missing_required_parameter"),
        ({"top_n": 0}, "top_n", "invalid_value"),
        ({"documents": ["fine", "road " * 70]}, "documents[1]", "context_length_exceeded"),
    ],
)
async def test_what_cannot_be_ranked_is_refused_and_named(
    reranker: LocalBackend, fields: dict[str, Any], param: str, code: str
) -> None:
    with pytest.raises(UpstreamRefused) as caught:
        await reranker.complete(rerank(**fields))
    assert (caught.value.status, caught.value.code) == (400, code)
    assert str(caught.value.param).startswith(param.split("[", maxsplit=1)[0])


async def test_a_reranker_serves_nothing_else(reranker: LocalBackend) -> None:
    for other in (chat(), embedding("road")):
        with pytest.raises(UpstreamRefused, match="serves rerank"):
            await reranker.complete(other)


async def test_a_file_that_cannot_rank_says_so_at_start(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "vectors.gguf", head=False)
    async with running(path, serves="rerank") as backend:
        with pytest.raises(BackendUnavailable, match="cannot rank"):
            await backend.complete(rerank())


async def test_a_text_that_is_too_long_is_cut_where_the_client_wants_it(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "vectors.gguf", head=False)
    async with running(path, serves="embeddings") as backend:
        with pytest.raises(UpstreamRefused, match="64 tokens"):
            await backend.complete(embedding("road " * 100))
        cut, fits = [
            json.loads((await backend.complete(embedding("road " * words, truncate=True))).body) for words in (100, 62)
        ]
    assert cut["data"] == fits["data"], "the mark at the end is kept"
    assert cut["usage"]["prompt_tokens"] == 64


async def test_many_short_texts_of_a_model_with_a_small_window_fit_into_their_calls(
    reranker: LocalBackend, tmp_path: Path
) -> None:
    """The window is smaller than what texts share a call up to."""
    answer = await ranked(reranker, documents=["road river"] * 100)
    assert len(answer["results"]) == 100
    path = write_reranker(tmp_path / "vectors.gguf", head=False)
    async with running(path, serves="embeddings", context_tokens=32, batch_tokens=1000) as backend:
        made = json.loads((await backend.complete(embedding(["the road rises high"] * 50))).body)
    assert len(made["data"]) == 50


async def test_a_model_of_vectors_does_not_start_as_one_of_text(tmp_path: Path) -> None:
    path = write_reranker(tmp_path / "vectors.gguf", head=False)
    async with running(path) as backend:
        with pytest.raises(BackendUnavailable, match="makes vectors and no text"):
            await backend.complete(chat())


async def test_a_pair_is_put_together_as_the_model_wants_it(reranker: LocalBackend, tmp_path: Path) -> None:
    """[CLS] query [SEP] document [SEP] as far as the vocabulary asks for them, or the file's own template."""
    pair = rerank(query="the high road", documents=["stone bridge"])
    usual = await reranker.count(pair)
    assert usual.prompt_tokens > 5, "with marks around"
    path = write_reranker(tmp_path / "own.gguf", template="the river {query} falls {document} low")
    async with running(path, serves="rerank") as backend:
        own = await backend.count(pair)
        assert own.prompt_tokens >= 9, "five words, and four of the template"
        score = (await ranked(backend, documents=["stone bridge"]))["results"][0]["relevance_score"]
    other = (await ranked(reranker, documents=["stone bridge"]))["results"][0]["relevance_score"]
    assert score != pytest.approx(other, abs=1e-6)
