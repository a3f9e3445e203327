import asyncio
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


class GatedBackend(WordsBackend):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.began = asyncio.Semaphore(0)

    async def complete(self, call: Call) -> Answer:
        self.began.release()
        await self.gate.wait()
        return await super().complete(call)


async def test_a_text_that_several_want_at_the_same_time_is_computed_once(cache: EmbeddingCache) -> None:
    backend = GatedBackend()
    embedder, scope = Embedder(backend, cache), f"scope {next(scopes)}"
    callers = [
        asyncio.create_task(embed(embedder, texts, scope=scope)) for texts in (["a", "b"], ["b", "c"], ["a", "b"])
    ]
    for _ in range(2):
        await backend.began.acquire()
    backend.gate.set()
    first, second, third = await asyncio.gather(*callers)
    assert sorted(backend.asked) == ["a", "b", "c"]
    assert bits(first) == bits(third) == [vector_of(text, 64, "one").tobytes() for text in "ab"]
    assert bits(second) == [vector_of(text, 64, "one").tobytes() for text in "bc"]
    assert (first.hits, second.hits, third.hits) == (0, 0, 0)


@pytest.mark.parametrize("end", ["leaves", "fails"])
async def test_when_the_one_who_computes_leaves_or_fails_another_one_computes(cache: EmbeddingCache, end: str) -> None:
    backend = GatedBackend()
    backend.failures = [BackendUnavailable("words", "gone")] if end == "fails" else []
    embedder, scope = Embedder(backend, cache), f"scope {next(scopes)}"
    leader = asyncio.create_task(embed(embedder, ["a"], scope=scope))
    await backend.began.acquire()
    follower = asyncio.create_task(embed(embedder, ["a"], scope=scope))
    while not embedder._underway or follower.get_stack() == []:
        await asyncio.sleep(0)
    if end == "leaves":
        leader.cancel()
    backend.gate.set()
    made = await follower
    assert bits(made) == [vector_of("a", 64, "one").tobytes()]
    assert isinstance((await asyncio.gather(leader, return_exceptions=True))[0], BaseException)
    assert embedder._underway == {}


async def test_texts_of_another_scope_or_past_the_cache_are_not_waited_for(cache: EmbeddingCache) -> None:
    backend = GatedBackend()
    embedder = Embedder(backend, cache)
    body = Body(b'{"model": "m", "input": ["a"]}')
    call = Call(EMBEDDINGS, body, "r", "alias")
    uses = [Use("one"), Use("two"), Use("one", read=False), Use("one", read=False, write=False)]
    callers = [asyncio.create_task(embedder.embed(["a"], call, use)) for use in uses]
    for _ in uses:
        await backend.began.acquire()
    backend.gate.set()
    assert len({vector.tobytes() for made in await asyncio.gather(*callers) for vector in made.vectors}) == 1


async def test_what_must_not_be_stored_is_not(cache: EmbeddingCache) -> None:
    embedder, scope = Embedder(WordsBackend(), cache), f"scope {next(scopes)}"
    call = Call(EMBEDDINGS, Body(b'{"model": "m"}'), "r", "alias")
    for _ in range(2):
        made = await embedder.embed(["a"], call, Use(scope, read=False, write=False, owner="role:r"))
        assert made.hits == 0
    await cache.flush()
    assert (len(cache.memory), await cache.store.kept()) == (0, [])


class Swapped(WordsBackend):
    """Its model changes while it is at work, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def complete(self, call: Call) -> Answer:
        if self.times:
            self.times -= 1
            self.seed = f"seed {self.times}"
        return await super().complete(call)


async def test_an_answer_holds_vectors_of_one_model_and_stores_none_under_anothers_name(cache: EmbeddingCache) -> None:
    scope = f"scope {next(scopes)}"
    texts = [f"text {number}" for number in range(2 * TEXTS_PER_CALL)]
    made = await embed(Embedder(Swapped(1), cache), texts, scope=scope)
    assert bits(made) == [vector_of(text, 64, "seed 0").tobytes() for text in texts]
    again = await embed(Embedder(WordsBackend(seed="one"), cache), texts[:1], scope=scope)
    assert (again.hits, bits(again)) == (0, [vector_of(texts[0], 64, "one").tobytes()])
    with pytest.raises(EmbeddingFailed, match="changed while it was at work"):
        await embed(Embedder(Swapped(9), cache), ["a"], scope=scope)


async def test_a_provider_that_counts_nonsense_is_not_believed(cache: EmbeddingCache) -> None:
    body = {"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 2**63}}
    with pytest.raises(EmbeddingFailed):
        await embed(Embedder(GivenBackend(body), cache), ["a"])
