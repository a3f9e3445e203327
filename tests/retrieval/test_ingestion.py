import logging
import os
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.errors import BackendUnavailable, UpstreamRefused
from retrieval.catalog import Catalog
from retrieval.embedding import Embedder
from retrieval.index import VectorIndex
from retrieval.index_exact import ExactIndex
from retrieval.index_usearch import UsearchIndex
from retrieval.ingestion import MAX_FILE_BYTES, Ingestion, Report, run_until_ready
from retrieval.lexical import LexicalIndex
from retrieval.search import Searcher
from retrieval.settings import ChunkSettings, CollectionSettings, RetrievalSettings
from tests.retrieval.fakes import WordsBackend

pytestmark = pytest.mark.anyio

FILES = {
    "quotas.md": "# Quotas\n\nA hold on tokens expires.\n\n## Windows\n\nRolling windows keep sixty slices.\n",
    "animals.txt": "Llamas carry loads over the pass.",
    "birds.html": "<html><body><p>Condors circle at noon.</p></body></html>",
}


class House:
    """A folder, a database and what reads one into the other; each `start` is a fresh process."""

    def __init__(self, database: AsyncEngine, root: Path) -> None:
        self.database = database
        self.catalog = Catalog(database)
        self.root = root
        self.backend = WordsBackend()
        self.chunk = ChunkSettings(max_tokens=64, overlap_tokens=0)
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str | bytes) -> None:
        file = self.root / "docs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def remove(self, name: str) -> None:
        (self.root / "docs" / name).unlink()

    def start(self, index: VectorIndex | None = None) -> Ingestion:
        embedder = Embedder(self.backend)
        self.searcher = Searcher(
            "docs",
            catalog=self.catalog,
            embedder=embedder,
            lexical=LexicalIndex(self.database),
            index=index if index is not None else ExactIndex(),
        )
        settings = CollectionSettings(name="docs", embed="words", paths=["docs/**/*"], chunk=self.chunk)
        return Ingestion(
            settings,
            catalog=self.catalog,
            embedder=embedder,
            searcher=self.searcher,
            root=self.root,
            clock=lambda: 1_800_000_000.9,
        )

    async def ingest(self, index: VectorIndex | None = None) -> tuple[Report, list[str]]:
        """The report, and the texts that were embedded for it."""
        self.backend.calls.clear()
        report = await self.start(index).run()
        return report, self.backend.asked

    async def best(self, query: str, mode: str = "dense") -> str:
        settings = RetrievalSettings.model_validate({"mode": mode, "top_k": 1})
        found = await self.searcher.search(query, settings, request_id="r")
        return found[0].chunk.text if found else ""


@pytest.fixture
def house(database: AsyncEngine, tmp_path: Path) -> House:
    return House(database, tmp_path)


async def test_files_become_passages_that_can_be_found(house: House) -> None:
    report, _ = await house.ingest()
    assert report == Report(added=3, unchanged=0, removed=0, failed=0)
    assert (house.searcher.ready, house.searcher.state) == (True, "ready")
    assert set(await house.catalog.known("docs")) == {f"docs/{name}" for name in FILES}
    for query, words in (("rolling windows", "sixty slices"), ("llamas", "loads"), ("condors", "noon")):
        assert words in await house.best(query)
        assert words in await house.best(query, "lexical")
    found = await house.searcher.search("rolling windows", RetrievalSettings(top_k=1), request_id="r")
    assert found[0].chunk.title == "Quotas"


async def test_chunks_are_embedded_with_their_heading_title_or_path(house: House) -> None:
    _, asked = await house.ingest()
    assert {text.partition("\n")[0] for text in asked} == {"docs/animals.txt", "docs/birds.html", "Quotas"}
    house.chunk = ChunkSettings(max_tokens=16, overlap_tokens=0)
    _, asked = await house.ingest()
    assert {text.partition("\n")[0] for text in asked} >= {"Quotas", "Quotas > Windows"}


async def test_unchanged_files_are_not_embedded_again_and_are_searchable_after_a_restart(house: House) -> None:
    await house.ingest()
    counts = await house.catalog.counts("docs")
    report, asked = await house.ingest()
    assert (report, asked) == (Report(0, 3, 0, 0), [])
    assert await house.catalog.counts("docs") == counts
    assert len(house.searcher.index) == counts[1]
    assert "loads" in await house.best("llamas")


async def test_a_changed_file_is_replaced_and_nothing_else_is_touched(house: House) -> None:
    await house.ingest()
    house.write("animals.txt", "Vicuñas graze on the puna.")
    report, asked = await house.ingest()
    assert report == Report(1, 2, 0, 0)
    assert asked == ["docs/animals.txt\nVicuñas graze on the puna."]
    assert "puna" in await house.best("vicuñas graze")
    assert await house.best("llamas", "lexical") == ""
    assert (await house.catalog.counts("docs"))[0] == 3
    assert len(house.searcher.index) == (await house.catalog.counts("docs"))[1]


async def test_a_file_touched_but_equal_is_unchanged(house: House) -> None:
    await house.ingest()
    house.write("animals.txt", FILES["animals.txt"])
    assert await house.ingest() == (Report(0, 3, 0, 0), [])


async def test_a_file_that_is_gone_goes(house: House) -> None:
    await house.ingest()
    house.remove("animals.txt")
    report, asked = await house.ingest()
    assert (report, asked) == (Report(0, 2, 1, 0), [])
    assert "docs/animals.txt" not in await house.catalog.known("docs")
    assert await house.best("llamas", "lexical") == ""
    assert "loads" not in await house.best("llamas carry loads")


async def test_running_twice_in_one_process_changes_nothing(house: House) -> None:
    ingestion = house.start()
    await ingestion.run()
    size = len(house.searcher.index)
    assert await ingestion.run() == Report(0, 3, 0, 0)
    assert len(house.searcher.index) == size


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("bad.txt", b"\0\0\0"),
        ("bad.pdf", b"no pdf"),
        ("bad.unheardof", b"text"),
        ("bad.md", b"  \n"),
        ("aa/bad.md", b"# Only\n\n## Headings\n"),
        ("bad.txt", b"forgetme please"),
    ],
)
async def test_one_bad_file_does_not_disturb_the_others(
    house: House, caplog: pytest.LogCaptureFixture, name: str, data: bytes
) -> None:
    house.backend.forgets = "forgetme"
    house.write(name, data)
    with caplog.at_level(logging.WARNING):
        report, _ = await house.ingest()
    assert report == Report(3, 0, 0, 1)
    assert house.searcher.ready
    assert "loads" in await house.best("llamas")
    assert len(caplog.records) == 1
    if name.endswith((".txt", ".md")):
        house.write(name, b"mended at last")
        assert (await house.ingest())[0] == Report(1, 3, 0, 0)


async def test_a_nul_late_in_a_text_keeps_nothing_out(house: House) -> None:
    house.write("late.txt", b"word " * 1000 + b"\0 and vicunas")
    assert (await house.ingest())[0] == Report(4, 0, 0, 0)
    assert "vicunas" in await house.best("vicunas", "lexical")


async def test_a_file_that_is_too_large_is_left_out(house: House) -> None:
    with (house.root / "docs" / "huge.txt").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert (await house.ingest())[0] == Report(3, 0, 0, 1)


async def test_a_text_that_the_provider_refuses_is_left_out(house: House) -> None:
    refusal = UpstreamRefused("words", 400, "too long", type_="invalid_request_error", code=None, param=None)
    house.backend.failures = [refusal]
    report, _ = await house.ingest()
    assert report == Report(2, 0, 0, 1)
    assert (await house.ingest())[0] == Report(1, 2, 0, 0)


async def test_a_file_that_holds_no_text_any_more_says_nothing_any_more(house: House) -> None:
    await house.ingest()
    house.write("animals.txt", b"\0\0\0")
    assert (await house.ingest())[0] == Report(0, 2, 0, 1)
    assert "loads" not in await house.best("llamas")


async def test_other_chunk_settings_read_everything_anew(house: House) -> None:
    await house.ingest()
    house.chunk = ChunkSettings(max_tokens=16, overlap_tokens=0)
    report, asked = await house.ingest()
    assert (report, bool(asked)) == (Report(3, 0, 0, 0), True)
    assert len(house.searcher.index) == (await house.catalog.counts("docs"))[1]


async def test_another_model_reads_everything_anew(house: House) -> None:
    await house.ingest()
    house.backend = WordsBackend(seed="two")
    report, asked = await house.ingest()
    assert (report, bool(asked)) == (Report(3, 0, 0, 0), True)
    assert "loads" in await house.best("llamas")


@pytest.mark.parametrize("bad_file", [False, True], ids=["all read", "one unreadable"])
@pytest.mark.parametrize("make", [ExactIndex, UsearchIndex])
async def test_a_model_with_other_dimensions_takes_the_place_of_the_first(
    house: House, make: type[ExactIndex] | type[UsearchIndex], bad_file: bool
) -> None:
    """With one file that cannot be read any more: what is known of it cannot be compared, all else can."""
    await house.ingest(make())
    house.backend = WordsBackend(seed="two", dimensions=32)
    if bad_file:
        house.write("quotas.md", b"\0")
    report, _ = await house.ingest(make())
    assert report == (Report(2, 0, 0, 1) if bad_file else Report(3, 0, 0, 0))
    assert "loads" in await house.best("llamas")


async def test_chunks_stay_within_the_embedding_models_count(house: House) -> None:
    house.write("long.txt", " ".join(f"word{number}" for number in range(400)))
    await house.ingest()
    known = (await house.catalog.vectors("docs", embedding=await house.backend.identity()))[0]
    chunks = (await house.catalog.chunks("docs", known)).values()
    assert max(one.tokens for one in chunks) <= 64
    assert sum(one.path == "docs/long.txt" for one in chunks) > 10


async def test_what_was_stored_is_searchable_while_the_backend_is_away(house: House) -> None:
    await house.ingest()
    house.write("animals.txt", "changed")
    house.backend.failures = [BackendUnavailable("words", "starting")]
    with pytest.raises(BackendUnavailable):
        await house.start().run()
    assert house.searcher.ready
    assert "loads" in await house.best("llamas")


async def test_a_new_collection_waits_until_its_backend_answers(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.backend.failures = [BackendUnavailable("words", "starting"), BackendUnavailable("words", "starting")]
    ingestion = house.start()
    assert (house.searcher.ready, house.searcher.state) == (False, "waiting to be indexed")
    with caplog.at_level(logging.WARNING):
        await run_until_ready(ingestion, name="docs", delays_s=(0,))
    assert house.searcher.ready
    assert [record.message for record in caplog.records if "cannot be indexed yet" in record.message]
    assert (await house.catalog.counts("docs"))[0] == 3


async def test_a_collection_without_files_is_ready_and_empty(house: House) -> None:
    for name in FILES:
        house.remove(name)
    assert (await house.ingest())[0] == Report(0, 0, 0, 0)
    assert house.searcher.ready
    assert await house.best("llamas") == ""


async def test_a_file_name_that_is_no_text_is_read_like_any_other(house: House) -> None:
    (house.root / "docs" / os.fsdecode(b"bad\xff.md")).write_bytes(b"# Condors\n\nCondors circle over the pass.")
    report, _ = await house.ingest()
    assert (report.added, report.failed) == (4, 0)
    assert "Condors" in await house.best("condors")
