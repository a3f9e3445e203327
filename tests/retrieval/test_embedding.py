import base64
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.base import EMBEDDINGS, Answer, Backend, Call
from backends.errors import BackendUnavailable
from backends.wire import Body
from retrieval.embedding import TEXTS_PER_CALL, WORDS_PER_CALL, Embedded, Embedder, Use, render
from retrieval.embedding_cache import EmbeddingCache
from retrieval.errors import EmbeddingFailed
from tests.retrieval.fakes import WordsBackend, tokens_of, vector_of
from tests.retrieval.test_embedding_cache import cache_over

pytestmark = pytest.mark.anyio

scopes = itertools.count()


class GivenBackend(WordsBackend):
    """Answers with this body, whatever is asked."""

    def __init__(self, body: dict[str, Any] | bytes, *, local: bool = False) -> None:
        super().__init__(local=local)
        self._body = body if isinstance(body, bytes) else msgspec.json.encode(body)

    async def complete(self, call: Call) -> Answer:
        return Answer(self._body, None, {})


@pytest.fixture
async def cache(database: AsyncEngine) -> EmbeddingCache:
    cache = cache_over(database)
    await cache.open()
    return cache


async def embed(
    embedder: Embedder, texts: Sequence[str], *, scope: str = "all", model: str = "m", **options: Any
) -> Embedded:
    body = Body(msgspec.json.encode({"model": model, "input": list(texts), **options}))
    return await embedder.embed(texts, Call(EMBEDDINGS, body, "r", "alias"), Use(scope))


def bits(embedded: Embedded) -> list[bytes]:
    return [vector.tobytes() for vector in embedded.vectors]


TEXT = st.sampled_from(["a", "b", "a b", "b a", " a", "A", "ñ", "n\u0303", "long " * 40, "c\n", "c"]) | st.text(
    st.characters(codec="utf-8"), min_size=1, max_size=5
)


async def test_the_fake_is_a_backend() -> None:
    assert isinstance(WordsBackend(), Backend)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(TEXT, min_size=1, max_size=12), min_size=1, max_size=5), local=st.booleans())
async def test_any_mix_of_hits_misses_and_duplicates_equals_what_is_computed_without_a_cache(
    cache: EmbeddingCache, batches: list[list[str]], local: bool
) -> None:
    backend, plain, seen = WordsBackend(local=local), Embedder(WordsBackend(local=local)), set[str]()
    embedder, scope = Embedder(backend, cache), f"scope {next(scopes)}"
    for texts in batches:
        backend.calls.clear()
        made = await embed(embedder, texts, scope=scope)
        assert bits(made) == bits(await embed(plain, texts))
        assert made.hits == sum(text in seen for text in texts)
        assert backend.asked == list(dict.fromkeys(text for text in texts if text not in seen))
        if local:
            assert made.prompt_tokens == sum(map(tokens_of, texts))
            assert made.cached_tokens == sum(tokens_of(text) for text in texts if text in seen)
        seen |= set(texts)


async def test_a_scope_never_gets_a_hit_from_another(cache: EmbeddingCache) -> None:
    backend = WordsBackend()
    embedder = Embedder(backend, cache)
    made = [await embed(embedder, ["secret"], scope=scope) for scope in ("key:1", "key:2", "key:1", "key:2")]
    assert [one.hits for one in made] == [0, 0, 1, 1]
    assert len(backend.calls) == 2


@pytest.mark.parametrize(
    ("local", "first", "second", "hits"),
    [
        (True, {}, {"user": "ana"}, 1),
        (True, {}, {"encoding_format": "base64"}, 1),
        (True, {}, {"dimensions": 8}, 0),
        (True, {"model": "one"}, {"model": "two"}, 1),
        (False, {"model": "one"}, {"model": "two"}, 0),
        (False, {"truncate": "left"}, {"truncate": "right"}, 0),
    ],
)
async def test_whatever_changes_the_vector_is_part_of_the_key(
    cache: EmbeddingCache, local: bool, first: dict[str, Any], second: dict[str, Any], hits: int
) -> None:
    embedder = Embedder(WordsBackend(local=local), cache)
    await embed(embedder, ["text"], **first)
    assert (await embed(embedder, ["text"], **second)).hits == hits


async def test_another_model_behind_the_backend_gets_no_hits(cache: EmbeddingCache) -> None:
    await embed(Embedder(WordsBackend(seed="one"), cache), ["text"])
    made = await embed(Embedder(WordsBackend(seed="two"), cache), ["text"])
    assert (made.hits, bits(made)) == (0, [vector_of("text", 64, "two").tobytes()])


async def test_options_of_the_client_reach_the_backend(cache: EmbeddingCache) -> None:
    backend = WordsBackend(local=False)
    await embed(Embedder(backend, cache), ["text"], dimensions=7, user="ana")
    (call,) = backend.calls
    assert msgspec.json.decode(call.body.raw) == {
        "model": "m", "input": ["text"], "dimensions": 7, "encoding_format": "float"
    }  # fmt: skip


async def test_many_texts_go_in_calls_of_bounded_size_and_keep_their_order() -> None:
    backend, texts = WordsBackend(), [f"text {number}" for number in range(2 * TEXTS_PER_CALL + 3)]
    made = await embed(Embedder(backend), texts)
    assert [len(call.body.require("input", list[str])) for call in backend.calls] == [TEXTS_PER_CALL] * 2 + [3]
    assert bits(made) == [vector_of(text, 64, "one").tobytes() for text in texts]


async def test_tokens_are_counted_for_each_input_and_hits_are_told_apart(cache: EmbeddingCache) -> None:
    embedder = Embedder(WordsBackend(), cache)
    await embed(embedder, ["one two three"])
    made = await embed(embedder, ["one", "one two three", "one", "one two three"])
    assert (made.prompt_tokens, made.cached_tokens, made.hits) == (3 + 5 + 3 + 5, 10, 2)


async def test_a_providers_sum_is_spread_over_the_texts_and_adds_up(cache: EmbeddingCache) -> None:
    embedder = Embedder(WordsBackend(local=False), cache)
    texts = ["a", "a longer text than that", "b"]
    first = await embed(embedder, texts)
    again = await embed(embedder, texts)
    assert first.prompt_tokens == again.prompt_tokens == again.cached_tokens == sum(map(tokens_of, texts))


ONE = {"index": 0, "embedding": [1.0, 0.0]}


@pytest.mark.parametrize(
    "body",
    [
        {"data": [ONE]},
        {"data": []},
        {"data": [ONE, ONE]},
        {"data": [ONE, {"index": 2, "embedding": [1.0]}]},
        {"data": [ONE, {"index": 1, "embedding": [1.0]}, {"index": 2, "embedding": [1.0]}]},
        {"data": [ONE, {"index": 1, "embedding": "no base64!"}]},
        {"data": [ONE, {"index": 1, "embedding": "AAAA"}]},
        {"data": [ONE, {"index": 1, "embedding": ["x"]}]},
        {"data": [ONE, {"index": 1}]},
        {"object": "list"},
        b"<html>",
        b"",
    ],
)
async def test_anything_but_one_vector_for_each_text_is_a_failure_and_is_not_kept(
    cache: EmbeddingCache, body: dict[str, Any] | bytes
) -> None:
    with pytest.raises(EmbeddingFailed, match="'words'"):
        await embed(Embedder(GivenBackend(body), cache), ["a", "b"])
    assert (await embed(Embedder(WordsBackend(local=False), cache), ["a", "b"])).hits == 0


async def test_counts_that_do_not_match_the_texts_are_a_failure() -> None:
    body = {"data": [ONE, ONE | {"index": 1}], "usage": {"prompt_tokens": 3, "prompt_tokens_by_input": [3]}}
    with pytest.raises(EmbeddingFailed):
        await embed(Embedder(GivenBackend(body)), ["a", "b"])


@pytest.mark.parametrize("forgets", ["b", "a"])
async def test_a_backend_that_forgets_a_text_is_not_believed(cache: EmbeddingCache, forgets: str) -> None:
    with pytest.raises(EmbeddingFailed):
        await embed(Embedder(WordsBackend(forgets=forgets), cache), ["a", "b"])


async def test_failures_of_the_backend_come_through(cache: EmbeddingCache) -> None:
    embedder = Embedder(WordsBackend(failures=[BackendUnavailable("words", "gone")]), cache)
    with pytest.raises(BackendUnavailable):
        await embed(embedder, ["a"])
    assert (await embed(embedder, ["a"])).hits == 0


async def test_vectors_of_documents_have_unit_length() -> None:
    body = {"data": [{"index": 0, "embedding": [3.0, 4.0]}, {"index": 1, "embedding": [0.0, 0.0]}]}
    matrix = await Embedder(GivenBackend(body)).vectors(["a", "b"], request_id="r")
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_a_document_vector_that_is_not_finite_is_a_failure(number: float) -> None:
    packed = base64.b64encode(struct.pack("<2f", 1.0, number)).decode()
    with pytest.raises(EmbeddingFailed, match="not finite"):
        backend = GivenBackend({"data": [{"index": 0, "embedding": packed}]}, local=True)
        await Embedder(backend).vectors(["a"], request_id="r")


@pytest.mark.parametrize("counts", [True, False])
async def test_each_distinct_word_is_counted_once(counts: bool) -> None:
    embedder = Embedder(WordsBackend(counts=counts))
    words = [f"w{number}" for number in range(WORDS_PER_CALL + 5)] * 2
    counted = await embedder.word_counts([*words, "internationalization"])
    assert len(counted) == WORDS_PER_CALL + 6
    assert counted["internationalization"] == (6 if counts else 7)
    assert await embedder.word_counts([]) == {}


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_both_renderings_hold_the_same_numbers(cache: EmbeddingCache, encoding: str) -> None:
    embedder = Embedder(WordsBackend(), cache)
    await embed(embedder, ["b"])
    made = await embed(embedder, ["a", "b"])
    body = render(made, model="alias", encoding=encoding)
    rendered = [
        np.frombuffer(base64.b64decode(one["embedding"]), "<f4") if encoding == "base64" else one["embedding"]
        for one in body["data"]
    ]
    assert [np.asarray(one, np.float32).tobytes() for one in rendered] == bits(made)
    assert [one["index"] for one in body["data"]] == [0, 1]
    assert (body["object"], body["model"]) == ("list", "alias")
    assert body["usage"] == {"prompt_tokens": 6, "total_tokens": 6, "prompt_tokens_details": {"cached_tokens": 3}}
