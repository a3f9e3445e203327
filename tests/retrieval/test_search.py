"""Questions to passages."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.base import Answer, Call
from backends.errors import BackendError, BackendUnavailable, UpstreamRefused
from retrieval import lexical
from retrieval.candidates import joined
from retrieval.catalog import Stored
from retrieval.documents import NewChunk
from retrieval.embedding import Embedder
from retrieval.errors import CollectionNotReady, EmbeddingFailed, FilterInvalid
from retrieval.reranking import Reranker
from retrieval.search import QUERY_CHARS, Findings, Searcher
from retrieval.settings import RetrievalSettings
from tests.retrieval.fakes import WordsBackend, vector_of
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

GONE = BackendUnavailable("words", "gone")

TEXTS = {
    "holds": "a hold on tokens expires when the request ends",
    "windows": "rolling windows keep sixty slices of a minute",
    "llamas": "llamas carry loads over the pass",
    "condors": "condors circle above the pass at noon",
}

MODES = ["hybrid", "dense", "lexical"]


class Ranking(Reranker):
    """Likes passages by how often they name the word."""

    def __init__(self, word: str, *, fails: Exception | None = None) -> None:
        self.word, self.fails = word, fails
        self.asked: list[tuple[str, list[str]]] = []

    async def scores(self, query: str, texts: Sequence[str], *, request_id: str) -> list[float]:
        self.asked.append((query, list(texts)))
        if self.fails is not None:
            raise self.fails
        return [min(1.0, text.count(self.word) / 4) for text in texts]


class ShortSighted(WordsBackend):
    """Reads so many characters and refuses what is longer."""

    def __init__(self, reads: int, *, code: str = "context_length_exceeded") -> None:
        super().__init__()
        self.reads, self.code = reads, code

    async def complete(self, call: Call) -> Answer:
        if any(len(text) > self.reads for text in call.body.require("input", list[str])):
            raise UpstreamRefused(
                "words", 400, "too long", type_="invalid_request_error", code=self.code, param="input"
            )
        return await super().complete(call)


class Desk:
    """Asks collections on a shelf; files are called by their name."""

    def __init__(self, shelf: Shelf, stored: Stored) -> None:
        self.shelf, self.stored = shelf, stored

    @property
    def backend(self) -> WordsBackend:
        return self.shelf.backend

    async def put(self, name: str, *texts: str, stored: Stored | None = None, **attributes: object) -> list[int]:
        new = [NewChunk("", text, len(text.split())) for text in texts]
        return await self.shelf.put(stored or self.stored, name, new, **attributes)

    async def find(self, *queries: str, stores: Sequence[Stored] = (), **options: Any) -> Findings:
        """Options of the search, and of its settings."""
        own = {name: options.pop(name) for name in ("condition", "weights") if name in options}
        fresh = [await self.shelf.fresh(one) for one in stores or (self.stored,)]
        settings = RetrievalSettings.model_validate(options)
        return await self.shelf.searcher.search(fresh, queries, settings, request_id="r", **own)

    async def names(self, *queries: str, **options: Any) -> list[str]:
        return [one.chunk.path for one in (await self.find(*queries, **options)).found]

    async def texts(self, *queries: str, **options: Any) -> list[str]:
        return [one.text for one in (await self.find(*queries, **options)).found]

    async def break_words(self, stored: Stored | None = None) -> None:
        async with self.shelf.database.begin() as connection:
            await lexical.drop_table(connection, (stored or self.stored).id)

    def break_meaning(self) -> None:
        self.backend.failures = [GONE] * 100


@pytest.fixture
async def empty(database: AsyncEngine, tmp_path: Path) -> AsyncIterator[Desk]:
    shelf = Shelf(database, tmp_path)
    yield Desk(shelf, await shelf.store("docs"))
    await shelf.aclose()


@pytest.fixture
async def desk(empty: Desk) -> Desk:
    for name, text in TEXTS.items():
        await empty.put(name, text)
    return empty


def cosine(one: str, other: str) -> float:
    return float(vector_of(one, 64, "one") @ vector_of(other, 64, "one"))


# -- ways of looking


@pytest.mark.parametrize("mode", MODES)
async def test_the_passage_that_answers_comes_first(desk: Desk, mode: str) -> None:
    for name, text in TEXTS.items():
        assert (await desk.names(text, mode=mode))[0] == name


@pytest.mark.parametrize(
    ("mode", "query", "names"),
    [
        ("lexical", "pass", {"llamas", "condors"}),
        ("lexical", "unheard windows", {"windows"}),
        ("lexical", "unheard", set()),
        ("dense", "unheard", set(TEXTS)),
        ("hybrid", "pass", set(TEXTS)),
    ],
)
async def test_modes_look_where_they_say(desk: Desk, mode: str, query: str, names: set[str]) -> None:
    findings = await desk.find(query, mode=mode)
    assert {one.chunk.path for one in findings.found} == names
    assert findings.degraded == []


async def test_words_alone_ask_no_embedding(desk: Desk) -> None:
    before = len(desk.backend.calls)
    assert await desk.names("pass", mode="lexical")
    assert len(desk.backend.calls) == before


async def test_what_both_ways_find_comes_before_what_one_finds(empty: Desk) -> None:
    await empty.put("both", "quipu knots numbers")
    await empty.put("meaning", "knots numbers")
    for number in range(5):
        await empty.put(f"other {number}", f"nothing alike {number}")
    assert await empty.names("quipu", top_k=1) == ["both"]


async def test_the_weight_of_a_way_of_looking_can_be_chosen(empty: Desk) -> None:
    """`quipu` is in the heading of one and is all of the other's text in other words' company."""
    words = await empty.shelf.put(empty.stored, "words", [NewChunk("", "quipu quipu puna ichu altiplano", 5)])
    meaning = await empty.shelf.put(empty.stored, "meaning", [NewChunk("", "knots quipu", 2)])
    assert words
    assert meaning
    by_words = await empty.names("quipu", mode="lexical")
    by_meaning = await empty.names("quipu", mode="dense")
    assert await empty.names("quipu", weights=(0.01, 1.0)) == by_words
    assert await empty.names("quipu", weights=(1.0, 0.01)) == by_meaning


async def test_no_more_than_the_candidates_of_each_way_are_fused(desk: Desk) -> None:
    assert len(await desk.names("pass", mode="dense", candidates=3)) == 3
    assert len(await desk.names("pass", mode="lexical", candidates=1)) == 1


# -- scores


async def test_a_score_is_the_cosine_cut_to_zero_and_one(desk: Desk) -> None:
    for mode in ("hybrid", "dense"):
        found = (await desk.find("llamas over the pass", mode=mode)).found
        assert {one.chunk.path: one.score for one in found} == pytest.approx(
            {name: min(1.0, max(0.0, cosine(text, "llamas over the pass"))) for name, text in TEXTS.items()}, abs=1e-5
        )


async def test_of_what_is_found_by_words_alone_the_place_is_the_score(desk: Desk) -> None:
    scores = [one.score for one in (await desk.find("pass llamas", mode="lexical")).found]
    assert scores[0] == pytest.approx(1.0)
    assert 0 < scores[1] < 1


@pytest.mark.parametrize("mode", MODES)
async def test_passages_below_the_least_score_are_left_out(desk: Desk, mode: str) -> None:
    assert len(await desk.names("llamas carry loads over the pass", mode=mode)) > 1
    assert await desk.names("llamas carry loads over the pass", mode=mode, min_score=0.97) == ["llamas"]


async def test_the_least_score_is_compared_with_the_meaning(desk: Desk) -> None:
    assert await desk.names("unheard pass", min_score=0.999) == []


@pytest.mark.parametrize("mode", MODES)
async def test_at_most_top_k_are_found(desk: Desk, mode: str) -> None:
    whole = await desk.names("pass", mode=mode)
    for top_k in (1, 2, 50):
        assert await desk.names("pass", mode=mode, top_k=top_k) == whole[:top_k]


async def test_a_passage_says_where_it_is_from(empty: Desk) -> None:
    await empty.shelf.put(empty.stored, "a.md", [NewChunk("Andes > Passes", "llamas", 1, 3)], year=2024)
    (one,) = (await empty.find("llamas")).found
    chunk = one.chunk
    assert (chunk.collection, chunk.collection_id) == ("docs", empty.stored.public_id)
    assert (chunk.source, chunk.attributes, one.text) == ("a.md, page 3 — Andes > Passes", {"year": 2024}, "llamas")


# -- questions


@pytest.mark.parametrize("queries", [[], [""], [" \n\t", ""]])
async def test_an_empty_question_finds_nothing_and_asks_nobody(desk: Desk, queries: list[str]) -> None:
    before = len(desk.backend.calls)
    assert (await desk.find(*queries)).found == []
    assert len(desk.backend.calls) == before


@pytest.mark.parametrize("mode", MODES)
async def test_several_questions_find_what_each_of_them_finds(desk: Desk, mode: str) -> None:
    found = await desk.names("rolling windows sixty slices", "llamas carry loads", mode=mode, top_k=2)
    assert set(found) == {"windows", "llamas"}


async def test_of_several_questions_the_nearest_gives_the_score(desk: Desk) -> None:
    queries = ("llamas carry loads over the pass", "unheard")
    for order in (queries, queries[::-1]):
        found = (await desk.find(*order)).found
        assert {one.chunk.path: one.score for one in found}["llamas"] == pytest.approx(1.0, abs=1e-5)


async def test_a_question_that_is_asked_twice_is_asked_once(desk: Desk) -> None:
    before = len(desk.backend.asked)
    once = await desk.names("pass", "noon")
    assert await desk.names("pass", "noon", "pass", " ") == once
    assert desk.backend.asked[before:] == ["pass", "noon"] * 2


@pytest.mark.parametrize("query", ["'; DROP TABLE chunks; --", '" OR NEAR(', "\0", "²", "x" * 20_000, "日本", "é"])
async def test_any_question_may_be_asked(desk: Desk, query: str) -> None:
    assert set(await desk.names(query)) <= set(TEXTS)


# -- filters


@pytest.mark.parametrize("mode", MODES)
async def test_a_filter_never_starves(empty: Desk, mode: str) -> None:
    """What it allows is found, however many that are nearer it does not allow."""
    for number in range(40):
        await empty.put(f"near {number}", f"quipu knots {number}", wanted=False)
    await empty.put("far", "a long tale of the puna and its winds where one quipu lies", wanted=True)
    condition = {"type": "eq", "key": "wanted", "value": True}
    for top_k in (1, 5):
        found = await empty.names("quipu knots", mode=mode, candidates=1, top_k=top_k, condition=condition)
        assert found == ["far"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_filter_that_allows_nothing_finds_nothing(desk: Desk, mode: str) -> None:
    assert await desk.names("pass", mode=mode, condition={"type": "eq", "key": "x", "value": 1}) == []
    assert await desk.names("pass", mode=mode, condition={"type": "ne", "key": "x", "value": 1}) != []


async def test_a_filter_follows_the_attributes(desk: Desk) -> None:
    condition = {"type": "eq", "key": "topic", "value": "birds"}
    assert await desk.names("pass", condition=condition) == []
    member = await desk.shelf.catalog.member(desk.stored.id, "condors")
    assert member is not None
    await desk.shelf.catalog.set_attributes(member, {"topic": "birds"})
    assert await desk.names("pass", condition=condition) == ["condors"]


async def test_a_filter_that_says_nothing_is_refused(desk: Desk) -> None:
    with pytest.raises(FilterInvalid):
        await desk.find("pass", condition={"type": "like", "key": "x", "value": 1})


async def test_attributes_are_those_of_each_collection(desk: Desk) -> None:
    other = await desk.shelf.store("other")
    await desk.put("mine", "pass", wanted=1)
    await desk.put("theirs", "another pass", stored=other, wanted=1)
    condition = {"type": "eq", "key": "wanted", "value": 1}
    assert set(await desk.names("pass", stores=[desk.stored, other], condition=condition)) == {"mine", "theirs"}


# -- several collections


@pytest.mark.parametrize("mode", MODES)
async def test_several_collections_are_searched_as_one(desk: Desk, mode: str) -> None:
    other = await desk.shelf.store("other")
    await desk.put("vicunas", "vicunas graze beside the pass", stored=other)
    await desk.put("puna", "the puna is high", stored=other)
    stores = [desk.stored, other]
    assert (await desk.names("vicunas graze", stores=stores, mode=mode))[0] == "vicunas"
    assert (await desk.names("llamas carry", stores=stores, mode=mode))[0] == "llamas"
    assert {"vicunas", "llamas", "condors"} <= set(await desk.names("pass", stores=stores, mode=mode))
    assert len(await desk.names("pass", stores=stores, mode=mode, top_k=2)) == 2


async def test_across_collections_the_nearest_come_first(desk: Desk) -> None:
    other = await desk.shelf.store("other")
    await desk.put("theirs", "condors at noon", stored=other)
    for stores in ([desk.stored, other], [other, desk.stored]):
        found = (await desk.find("condors at noon", stores=stores)).found
        assert found[0].chunk.path == "theirs"
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


async def test_a_question_is_embedded_once_for_all_collections_of_a_model(desk: Desk) -> None:
    other = await desk.shelf.store("other")
    await desk.put("theirs", "pass", stored=other)
    before = len(desk.backend.asked)
    await desk.names("pass", stores=[desk.stored, other])
    assert desk.backend.asked[before:] == ["pass"]


async def test_collections_do_not_see_each_other(desk: Desk) -> None:
    other = await desk.shelf.store("other")
    await desk.put("secret", "pass", stored=other)
    assert "secret" not in await desk.names("pass")
    assert await desk.names("pass", stores=[other]) == ["secret"]


# -- repetitions


@pytest.mark.parametrize("mode", MODES)
async def test_what_repeats_a_better_passage_is_dropped(empty: Desk, mode: str) -> None:
    """Also where there are more of them than were read at first."""
    for number in range(15):
        await empty.put(f"copy {number}", "Quipu knots keep numbers" if number % 2 else "quipu  knots keep\nnumbers")
    await empty.put("other", "a quipu hangs in the house")
    found = await empty.names("quipu knots numbers", mode=mode, top_k=2)
    assert len(found) == 2
    assert "other" in found


async def test_nearly_the_same_words_are_a_repetition_and_fewer_are_not(empty: Desk) -> None:
    words = [f"w{number}" for number in range(20)]
    await empty.put("one", " ".join(["quipu", *words]))
    await empty.put("nearly", " ".join(["quipu", *words, "more"]))
    await empty.put("part", " ".join(["quipu", *words[:12]]))
    found = await empty.names("quipu", top_k=10)
    assert len({"one", "nearly"} & set(found)) == 1
    assert "part" in found


# -- neighbours


SENTENCES = [f"Sentence number {number} about the {word}." for number, word in enumerate(
    ["quipu", "llama", "condor", "puna", "ichu", "pass", "lake", "salt", "stone", "wind"])]  # fmt: skip


async def overlapping(desk: Desk) -> None:
    """Chunks of two sentences, each of which begins with the last one of the chunk before."""
    await desk.put("long", *(" ".join(SENTENCES[place : place + 2]) for place in range(len(SENTENCES) - 1)))
    await desk.put("other", "an other document about the lake", "and what follows in it")


async def test_neighbours_are_joined_without_what_they_share(empty: Desk) -> None:
    await overlapping(empty)
    query = " ".join(SENTENCES[4:6])
    for reach in range(4):
        text = (await empty.texts(query, neighbours=reach, top_k=1))[0]
        assert text == " ".join(SENTENCES[max(0, 4 - reach) : 6 + reach])


@pytest.mark.parametrize(("place", "first", "last"), [(0, 0, 4), (8, 6, 10)])
async def test_neighbours_end_with_the_document(empty: Desk, place: int, first: int, last: int) -> None:
    await overlapping(empty)
    query = " ".join(SENTENCES[place : place + 2])
    assert await empty.texts(query, neighbours=2, top_k=1) == [" ".join(SENTENCES[first:last])]


async def test_no_chunk_is_shown_twice(empty: Desk) -> None:
    """A hit that lies within the neighbourhood of a better one is part of it."""
    await empty.put("long", *(f"chunk{number} quipu" for number in range(9)))
    for query in ("chunk4 quipu", "quipu", "chunk0 quipu", "chunk8 chunk2"):
        found = (await empty.find(query, neighbours=2, top_k=9)).found
        shown = " ".join(one.text for one in found).split()
        chunks = sorted(word for word in shown if word.startswith("chunk"))
        assert chunks == [f"chunk{number}" for number in range(9)]
        assert len({one.chunk.id for one in found}) == len(found)


async def test_the_hit_itself_stays_what_is_cited(empty: Desk) -> None:
    await overlapping(empty)
    (found,) = (await empty.find(" ".join(SENTENCES[4:6]), neighbours=1, top_k=1)).found
    assert (found.chunk.ordinal, found.chunk.text) == (4, " ".join(SENTENCES[4:6]))
    assert found.score == pytest.approx(1.0, abs=1e-5)


WORDS = st.lists(st.sampled_from([f"word{number}" for number in range(300)]), min_size=1, max_size=60, unique=True)


@given(words=WORDS, size=st.integers(6, 20), overlap=st.integers(3, 5))
def test_joined_chunks_are_the_text_that_they_were_cut_from(words: list[str], size: int, overlap: int) -> None:
    starts = range(0, max(1, len(words) - overlap), size - overlap)
    assert joined([" ".join(words[start : start + size]) for start in starts]) == " ".join(words)


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        ([], ""),
        (["one"], "one"),
        (["one", "two"], "one\n\ntwo"),
        (["", "two"], "\n\ntwo"),
        (["a text that is repeated", "a text that is repeated"], "a text that is repeated"),
        (["and so on it went. A last sentence.", "A last sentence. More."], "and so on it went. A last sentence. More."),
        (["short end", "end short"], "short end\n\nend short"),
    ],
)  # fmt: skip
def test_texts_in_a_row(texts: list[str], whole: str) -> None:
    assert joined(texts) == whole


# -- where a way of looking fails


@pytest.mark.parametrize("failure", [GONE, EmbeddingFailed("not one vector for each text")])
async def test_without_the_embedding_backend_words_answer(desk: Desk, failure: Exception) -> None:
    await desk.names("pass")
    desk.backend.failures = [failure]  # type: ignore[list-item]
    findings = await desk.find("pass")
    assert findings.degraded == ["dense"]
    assert {one.chunk.path for one in findings.found} == {"llamas", "condors"}
    assert all(0 < one.score <= 1 for one in findings.found)
    findings = await desk.find("pass")
    assert findings.degraded == []
    assert len(findings.found) == 4


async def test_an_embedding_backend_that_refuses_is_one_that_fails(desk: Desk) -> None:
    refused = UpstreamRefused("words", 429, "slow down", type_="rate_limit_error", code="rate_limit", param=None)
    desk.backend.failures = [refused]
    assert (await desk.find("pass")).degraded == ["dense"]


async def test_without_the_full_text_meaning_answers(desk: Desk) -> None:
    await desk.break_words()
    findings = await desk.find("llamas carry loads")
    assert findings.degraded == ["lexical"]
    assert findings.found[0].chunk.path == "llamas"


async def test_without_either_it_is_an_error_and_no_empty_answer(desk: Desk) -> None:
    await desk.names("pass")
    await desk.break_words()
    desk.break_meaning()
    with pytest.raises((BackendError, DBAPIError)):
        await desk.find("pass")


async def test_a_way_that_was_asked_for_alone_has_to_answer(desk: Desk) -> None:
    desk.break_meaning()
    with pytest.raises(BackendUnavailable):
        await desk.find("pass", mode="dense")
    assert (await desk.find("pass", mode="lexical")).degraded == []
    desk.backend.failures = []
    await desk.break_words()
    with pytest.raises(DBAPIError):
        await desk.find("pass", mode="lexical")
    assert (await desk.find("pass", mode="dense")).degraded == []


async def test_a_degraded_search_still_filters(desk: Desk) -> None:
    await desk.put("wanted", "another pass", wanted=1)
    condition = {"type": "eq", "key": "wanted", "value": 1}
    desk.break_meaning()
    assert await desk.names("pass", condition=condition) == ["wanted"]
    desk.backend.failures = []
    await desk.break_words()
    assert await desk.names("pass", condition=condition) == ["wanted"]


# -- reranking


async def ranked(desk: Desk, ranking: Ranking, *queries: str, **options: Any) -> Findings:
    desk.shelf.searcher = Searcher(desk.shelf.library, {"words": desk.shelf.embedder}, {"rank": ranking})
    return await desk.find(*queries, rerank="rank", **options)


async def test_a_reranker_has_the_last_word(desk: Desk) -> None:
    await desk.put("zeal", "zeal zeal zeal of condors")
    await desk.put("some", "zeal zeal of llamas")
    findings = await ranked(desk, Ranking("zeal"), "pass", top_k=3)
    assert [(one.chunk.path, one.score) for one in findings.found[:2]] == [("zeal", 0.75), ("some", 0.5)]
    assert len(findings.found) == 3
    assert findings.degraded == []


async def test_a_reranker_reads_the_question_and_all_candidates(desk: Desk) -> None:
    await desk.shelf.put(desk.stored, "headed", [NewChunk("Andes > Passes", "the high ones", 3)])
    ranking = Ranking("zeal")
    await ranked(desk, ranking, "which pass", "another question", top_k=1)
    ((query, texts),) = ranking.asked
    assert query == "which pass"
    assert len(texts) == 5
    assert any("Andes > Passes" in text and "the high ones" in text for text in texts)


async def test_the_least_score_is_compared_with_what_the_reranker_says(desk: Desk) -> None:
    await desk.put("zeal", "zeal zeal zeal of nothing")
    found = (await ranked(desk, Ranking("zeal"), "llamas carry loads over the pass", min_score=0.7)).found
    assert [one.chunk.path for one in found] == ["zeal"]
    assert (await ranked(desk, Ranking("unheard"), "pass", min_score=0.1)).found == []


async def test_equal_scores_keep_the_order(desk: Desk) -> None:
    before = await desk.names("pass")
    findings = await ranked(desk, Ranking("unheard"), "pass")
    assert [one.chunk.path for one in findings.found] == before


@pytest.mark.parametrize("failure", [GONE, EmbeddingFailed("did not rank every passage")])
async def test_a_reranker_that_fails_leaves_the_order(desk: Desk, failure: Exception) -> None:
    before = (await desk.find("pass", top_k=3)).found
    findings = await ranked(desk, Ranking("zeal", fails=failure), "pass", top_k=3)
    assert findings.found == before
    assert findings.degraded == ["rerank"]


async def test_nothing_found_is_nothing_to_rank(desk: Desk) -> None:
    findings = await ranked(desk, Ranking("zeal"), "pass", condition={"type": "eq", "key": "x", "value": 1})
    assert (findings.found, findings.degraded) == ([], [])


async def test_neighbours_are_joined_after_the_ranking(empty: Desk) -> None:
    await overlapping(empty)
    ranking = Ranking("stone")
    findings = await ranked(empty, ranking, "puna", neighbours=1, top_k=1)
    assert "stone" in findings.found[0].chunk.text
    assert len(findings.found[0].text) > len(findings.found[0].chunk.text)
    assert all(len(text.strip()) <= 80 for text in ranking.asked[0][1])


# -- collections that are not ready


async def test_an_empty_collection_has_nothing(empty: Desk) -> None:
    assert await empty.names("pass") == []


async def test_a_collection_that_is_being_filled_says_how_far_it_is(empty: Desk) -> None:
    assert await empty.shelf.documents.fail(await empty.shelf.target(empty.stored, "broken"), "invalid_file", "x")
    for name in ("a", "b"):
        await empty.shelf.target(empty.stored, name)
    with pytest.raises(CollectionNotReady, match=r"'docs' is not ready yet: .*1 of 3 files"):
        await empty.find("pass")


async def test_a_collection_with_something_in_it_is_ready(desk: Desk) -> None:
    await desk.shelf.target(desk.stored, "another")
    assert len(await desk.names("pass")) == 4


async def test_a_declared_collection_without_files_is_not_ready(empty: Desk) -> None:
    declared = await empty.shelf.catalog.declare("handbook", "words")
    with pytest.raises(CollectionNotReady, match="handbook"):
        await empty.find("pass", stores=[declared])
    assert await empty.shelf.documents.fail(await empty.shelf.target(declared, "broken"), "invalid_file", "x")
    assert await empty.names("pass", stores=[declared]) == []


async def test_a_collection_whose_backend_has_gone_is_not_ready(desk: Desk) -> None:
    orphan = await desk.shelf.catalog.create(name="orphan", owner="role", embed="removed")
    with pytest.raises(CollectionNotReady, match="removed"):
        await desk.find("pass", stores=[orphan])


# -- long questions


async def test_of_a_question_that_is_too_long_the_end_is_embedded(database: AsyncEngine, tmp_path: Path) -> None:
    shelf = Shelf(database, tmp_path, backend=ShortSighted(60))
    desk = Desk(shelf, await shelf.store("docs"))
    for name, text in TEXTS.items():
        await desk.put(name, text)
    findings = await desk.find("windows " * 500 + TEXTS["llamas"], mode="dense")
    assert findings.found[0].chunk.path == "llamas"
    assert findings.degraded == []
    assert len(desk.backend.asked[-1]) <= 60
    assert desk.backend.asked[-1].endswith("the pass")
    await shelf.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_of_a_very_long_question_no_more_than_its_end_is_searched_for(desk: Desk, mode: str) -> None:
    question = "condors circle " * 100_000 + "llamas carry loads " * 500
    assert await desk.names(question, mode=mode, top_k=1) == ["llamas"]
    asked = [text for text in desk.backend.asked if text not in TEXTS.values()]
    assert asked == ([] if mode == "lexical" else [question.strip()[-QUERY_CHARS:]])
    assert await desk.names(question, mode="lexical") == ["llamas"], "no word before it counts"
    assert await desk.names("llamas carry loads" + "\n" * 2 * QUERY_CHARS, mode=mode, top_k=1) == ["llamas"]


@pytest.mark.parametrize(("reads", "code"), [(0, "context_length_exceeded"), (20, "something_else")])
async def test_a_question_that_is_refused_for_good_is_searched_by_words(desk: Desk, reads: int, code: str) -> None:
    await desk.names("pass")
    embedder = Embedder(ShortSighted(reads, code=code))
    desk.shelf.searcher = Searcher(desk.shelf.library, {"words": embedder}, {})
    findings = await desk.find("which of them is over the pass")
    assert findings.degraded == ["dense"]
    assert {one.chunk.path for one in findings.found} == {"llamas", "condors"}
    with pytest.raises(UpstreamRefused):
        await desk.find("which of them is over the pass", mode="dense")


# -- what changes meanwhile


async def test_what_is_put_and_taken_is_seen_by_the_next_search(desk: Desk) -> None:
    await desk.put("vicunas", "vicunas at the pass")
    assert "vicunas" in await desk.names("vicunas")
    await desk.put("vicunas", "nothing of them any more")
    assert "nothing of them any more" in await desk.texts("vicunas", top_k=50)
    await desk.shelf.catalog.detach(desk.stored.id, ["vicunas"])
    assert "vicunas" not in await desk.names("vicunas", top_k=50)
    assert "llamas" in await desk.names("llamas")


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
async def test_a_passage_that_has_gone_meanwhile_is_left_out(desk: Desk, mode: str) -> None:
    """The caller has read the collection before; the next best takes its place."""
    before = await desk.shelf.fresh(desk.stored)
    order = await desk.names("llamas over the pass", mode=mode)
    await desk.shelf.catalog.detach(desk.stored.id, [order[0]])
    settings = RetrievalSettings.model_validate({"mode": mode, "top_k": 2})
    found = await desk.shelf.searcher.search([before], ["llamas over the pass"], settings, request_id="r")
    assert {one.chunk.path for one in found.found} <= set(order[1:])
    assert len(found.found) == 2


async def test_what_another_model_has_embedded_is_found_by_words(desk: Desk) -> None:
    """Until it is built anew."""
    await desk.names("pass")
    newer = WordsBackend(seed="two")
    desk.shelf.searcher = Searcher(desk.shelf.library, {"words": Embedder(newer)}, {})
    findings = await desk.find("pass", mode="dense")
    assert (findings.found, findings.degraded) == ([], [])
    assert set(await desk.names("pass")) == {"llamas", "condors"}


async def test_scores_are_finite_whatever_the_model_says(empty: Desk) -> None:
    await empty.put("a", "pass")
    await empty.put("b", "")
    assert all(np.isfinite(one.score) for one in (await empty.find("pass")).found)
