import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.errors import BackendUnavailable
from retrieval.catalog import Catalog, DocumentRow, NewChunk
from retrieval.embedding import Embedder
from retrieval.errors import CollectionNotReady
from retrieval.index_exact import ExactIndex
from retrieval.lexical import LexicalIndex
from retrieval.search import Searcher
from retrieval.settings import RetrievalSettings
from tests.retrieval.fakes import WordsBackend

pytestmark = pytest.mark.anyio

CHUNKS = {
    "holds": "a hold on tokens expires when the request ends",
    "windows": "rolling windows keep sixty slices of a minute",
    "llamas": "llamas carry loads over the pass",
    "condors": "condors circle above the pass at noon",
}


class Shelf:
    """A collection of four chunks; only `indexed` ones are in the index of vectors."""

    def __init__(self, database: AsyncEngine) -> None:
        self.backend = WordsBackend()
        self.catalog = Catalog(database)
        self.embedder = Embedder(self.backend)
        self.searcher = Searcher(
            "docs", catalog=self.catalog, embedder=self.embedder, lexical=LexicalIndex(database), index=ExactIndex()
        )

    async def fill(self, *indexed: str) -> None:
        for name, text in CHUNKS.items():
            vectors = await self.embedder.vectors([text], request_id="r")
            row = DocumentRow(collection="docs", path=name, fingerprint="f", embedding="e", title="", created_at=1)
            ids, _ = await self.catalog.put(row, [NewChunk("", text, 8)], vectors, replaces=None)
            if name in indexed:
                self.searcher.index.add(ids, vectors)
        self.searcher.ready = True

    async def paths(self, query: str, **settings: object) -> list[str]:
        found = await self.searcher.search(query, RetrievalSettings.model_validate(settings), request_id="r")
        return [one.chunk.path for one in found]


@pytest.fixture
async def shelf(database: AsyncEngine) -> Shelf:
    shelf = Shelf(database)
    await shelf.fill(*CHUNKS)
    return shelf


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
async def test_the_chunk_that_answers_comes_first(shelf: Shelf, mode: str) -> None:
    for name, text in CHUNKS.items():
        assert (await shelf.paths(text, mode=mode))[0] == name


@pytest.mark.parametrize(
    ("mode", "query", "paths"),
    [
        ("lexical", "pass", {"llamas", "condors"}),
        ("lexical", "unheard of", {"windows"}),
        ("dense", "unheard", set(CHUNKS)),
        ("hybrid", "pass", set(CHUNKS)),
    ],
)
async def test_modes_look_where_they_say(shelf: Shelf, mode: str, query: str, paths: set[str]) -> None:
    assert set(await shelf.paths(query, mode=mode)) == paths


async def test_both_legs_are_fused(database: AsyncEngine) -> None:
    """`windows` is known to one leg, `holds` to both."""
    shelf = Shelf(database)
    await shelf.fill("holds", "llamas")
    query = "rolling windows and a hold on tokens when the request ends"
    assert "windows" not in await shelf.paths(query, mode="dense")
    assert "llamas" not in await shelf.paths(query, mode="lexical", min_score=0.01)
    assert (await shelf.paths(query))[:1] == ["holds"]
    assert {"windows", "llamas"} <= set(await shelf.paths(query))


async def test_a_score_is_the_cosine_cut_to_zero_and_one(shelf: Shelf) -> None:
    found = await shelf.searcher.search(CHUNKS["llamas"], RetrievalSettings(), request_id="r")
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert all(0.0 <= one.score <= 1.0 for one in found)
    assert min(one.score for one in found) < 0.5


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
async def test_passages_below_the_least_score_are_left_out(shelf: Shelf, mode: str) -> None:
    query = CHUNKS["llamas"]
    assert len(await shelf.paths(query, mode=mode)) > 1
    assert await shelf.paths(query, mode=mode, min_score=0.9) == ["llamas"]
    assert await shelf.paths("unheard pass", mode=mode, min_score=0.999) == []


async def test_at_most_top_k_are_found(shelf: Shelf) -> None:
    whole = await shelf.paths("pass")
    assert await shelf.paths("pass", top_k=2) == whole[:2]


@pytest.mark.parametrize("query", ["", " \n\t"])
async def test_an_empty_question_finds_nothing_and_asks_nobody(shelf: Shelf, query: str) -> None:
    before = len(shelf.backend.calls)
    assert await shelf.paths(query) == []
    assert len(shelf.backend.calls) == before


async def test_a_collection_that_is_not_ready_says_why(shelf: Shelf) -> None:
    shelf.searcher.ready, shelf.searcher.state = False, "being indexed, 3 of 9 files"
    with pytest.raises(CollectionNotReady, match="'docs' is not ready yet: being indexed, 3 of 9 files"):
        await shelf.paths("pass")


async def test_a_backend_that_fails_is_an_error_and_no_empty_answer(shelf: Shelf) -> None:
    shelf.backend.failures = [BackendUnavailable("words", "gone")]
    with pytest.raises(BackendUnavailable):
        await shelf.paths("pass", mode="lexical")


async def test_a_chunk_that_has_gone_meanwhile_is_left_out(shelf: Shelf) -> None:
    known = await shelf.catalog.known("docs")
    await shelf.catalog.remove([known["llamas"].document_id])
    assert set(await shelf.paths("pass")) == set(CHUNKS) - {"llamas"}
