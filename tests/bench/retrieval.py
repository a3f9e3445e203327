"""`make bench-retrieval`: searches over a large collection, and what filling one costs beside the embedding engine alone.

The searches run in this process, with the question's embedding given: what is measured is looking up, fusing, and fetching the
passages. Chunks have the vectors of a mixture (as real ones, they gather in groups) and the words of a Zipf distribution; each
query shares both with a chunk. Filling is done by a real gateway with MiniLM.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import insert, select, update

from gateway.database import open_database
from retrieval import lexical
from retrieval.catalog import NewMember, Stored
from retrieval.embedding import Embedder
from retrieval.index_exact import ExactIndex
from retrieval.library import Library
from retrieval.search import Searcher
from retrieval.settings import RetrievalSettings
from retrieval.tables import chunks, documents, members
from retrieval.view import View
from tests.conftest import ROOT
from tests.retrieval.fakes import WordsBackend
from tests.retrieval.shelf import Shelf
from tests.running import running

CHUNKS = int(os.environ.get("BENCH_CHUNKS", "100000"))
EACH = 10
"""Chunks of a document."""

DIMENSIONS = 384
GROUPS = 2000
WORDS = 30_000
QUERIES = 300
FILES = int(os.environ.get("BENCH_FILES", "60"))

Matrix = NDArray[np.float32]


def say(words: str) -> None:
    print(words, flush=True)


class Given(Embedder):
    """Knows the vectors of the queries."""

    def __init__(self, backend: WordsBackend, vectors: dict[str, Matrix]) -> None:
        super().__init__(backend)
        self._vectors = vectors

    async def vectors(self, texts: Sequence[str], *, request_id: str) -> Matrix:
        return np.stack([self._vectors[text] for text in texts])


def mixture(random: np.random.Generator) -> Matrix:
    centers = random.standard_normal((GROUPS, DIMENSIONS), np.float32)
    vectors = centers[random.integers(0, GROUPS, CHUNKS)] + 0.8 * random.standard_normal(
        (CHUNKS, DIMENSIONS), np.float32
    )
    return unit(vectors)


def unit(vectors: Matrix) -> Matrix:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def zipf(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.int64]:
    weights = 1 / np.arange(1, WORDS + 1) ** 1.07
    return random.choice(WORDS, size=size, p=weights / weights.sum())


async def fill(shelf: Shelf, vectors: Matrix, words: NDArray[np.int64]) -> Stored:
    """Past the builder: what it costs to embed is measured elsewhere."""
    stored = await shelf.store()
    count = CHUNKS // EACH
    new = [NewMember(f"file-{n}", "file", f"{n}.txt", {"group": n % 100}, {"type": "auto"}) for n in range(count)]
    for start in range(0, count, 1000):
        await shelf.catalog.attach(stored.id, new[start : start + 1000])
    identity = await shelf.backend.identity()
    async with shelf.database.begin() as connection:
        ids = (await connection.execute(select(members.c.id).order_by(members.c.id))).scalars().all()
        base = {"collection_id": stored.id, "fingerprint": "f", "embedding": identity, "title": "", "created_at": 1}
        rows = [{"id": n + 1, "member_id": id_, **base} for n, id_ in enumerate(ids)]
        await connection.execute(insert(documents), rows)
        await connection.execute(update(members).values(document_id=members.c.id, status="completed"))
    for start in range(0, CHUNKS, 5000):
        texts = [" ".join(f"w{word}" for word in row) for row in words[start : start + 5000]]
        rows = [
            {
                "id": n + 1, "document_id": n // EACH + 1, "ordinal": n % EACH, "heading": "", "text": text, "tokens": 150,
                "parts": 1, "page": None, "vector": vectors[n].tobytes(),
            }
            for n, text in enumerate(texts, start=start)
        ]  # fmt: skip
        async with shelf.database.begin() as connection:
            await connection.execute(insert(chunks), rows)
    async with shelf.database.begin() as connection:
        for document in range(1, count + 1):
            await lexical.add_document(connection, stored.id, document)
    return await shelf.fresh(stored)


async def searched(
    searcher: Searcher, stored: Stored, queries: Sequence[str], condition: Any = None, **values: Any
) -> tuple[list[float], list[list[int]]]:
    settings = RetrievalSettings.model_validate({"top_k": 10} | values)
    times, found = [], []
    for query in queries:
        began = time.perf_counter()
        findings = await searcher.search([stored], [query], settings, request_id="bench", condition=condition)
        times.append(time.perf_counter() - began)
        found.append([one.chunk.id for one in findings.found])
    return times, found


def told(name: str, times: Sequence[float], recall: float | None) -> str:
    ordered = sorted(times)
    p99 = ordered[int(len(ordered) * 0.99)]
    found = f", recall@10 {recall:.3f} of exact" if recall is not None else ""
    return f"{name:44} p50 {statistics.median(times) * 1e3:6.2f} ms, p99 {p99 * 1e3:6.2f} ms{found}"


async def searches(folder: Path) -> None:
    random = np.random.default_rng(1)
    vectors, words = mixture(random), zipf(random, (CHUNKS, 150))
    picks = random.integers(0, CHUNKS, QUERIES)
    asked = unit(vectors[picks] + 0.03 * random.standard_normal((QUERIES, DIMENSIONS), np.float32))
    queries = [" ".join(f"w{word}" for word in words[pick][:8]) + f" q{n}" for n, pick in enumerate(picks)]
    shelf = Shelf(await open_database(f"sqlite:///{folder}/chasqui.db"), folder / "indexes")
    began = time.perf_counter()
    stored = await fill(shelf, vectors, words)
    say(f"{CHUNKS:,} chunks in {CHUNKS // EACH:,} documents written in {time.perf_counter() - began:.0f} s")
    embedder = Given(shelf.backend, dict(zip(queries, asked, strict=True)))
    searcher = Searcher(shelf.library, {"words": embedder}, {})
    began = time.perf_counter()
    view = await shelf.library.view(stored, embedder)
    say(f"index made anew from the database: {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    await shelf.library.save()
    say(f"index saved: {time.perf_counter() - began:.2f} s, {size_of(folder / 'indexes') / 2**20:,.0f} MB")
    again = Library(
        shelf.database, shelf.catalog, shelf.documents, shelf.files, shelf.lexical, shelf.library.retrievals,
        folder=folder / "indexes",
    )  # fmt: skip
    began = time.perf_counter()
    loaded = await again.view(stored, embedder)
    say(f"index loaded from its files, {len(loaded):,} vectors: {time.perf_counter() - began:.2f} s")
    exact = ExactIndex()
    exact.add(np.arange(1, CHUNKS + 1, dtype=np.uint64), vectors)
    await compare(searcher, view, stored, queries, asked, exact)
    await shelf.database.dispose()


async def compare(
    searcher: Searcher, view: View, stored: Stored, queries: Sequence[str], asked: Matrix, exact: ExactIndex
) -> None:
    one_percent = {"type": "eq", "key": "group", "value": 7}
    allowed = np.asarray([n for n in range(1, CHUNKS + 1) if (n - 1) // EACH % 100 == 7], np.uint64)
    for name, condition, within in (("", None, None), (", 1 % allowed by a filter", one_percent, allowed)):
        truth = [set(exact.search(vector, 10, within=within).keys.tolist()) for vector in asked]
        documents_in = view.allowed(condition) if condition else None
        near = [{id_ for id_, _ in view.nearest(vector, 10, within=documents_in)} for vector in asked]
        recall = sum(len(found & true) for found, true in zip(near, truth, strict=True)) / (10 * len(truth))
        for mode in ("dense", "lexical", "hybrid"):
            await searched(searcher, stored, queries[:100], condition, mode=mode)
            times, _ = await searched(searcher, stored, queries, condition, mode=mode)
            say(told(f"{mode}{name}", times, recall if mode != "lexical" else None))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def library(folder: Path) -> None:
    """Files of prose, each different, of about 4,000 words."""
    random = np.random.default_rng(3)
    syllables = "ka ta chu wa si pa ri mo la qui ya ru ne to li".split()
    folder.mkdir()
    for number in range(FILES):
        lines = [f"# Document {number}"]
        for _ in range(80):
            words = ["".join(random.choice(syllables, 3)) for _ in range(10)]
            lines.append(" ".join(f"The {word} runs over the high road to the station." for word in words[:5]))
        (folder / f"{number}.md").write_text("\n\n".join(lines))


def filling(folder: Path) -> None:
    """Texts a second: a collection that is built, beside the same texts sent to the same engine by themselves."""
    minilm = str(ROOT / "var" / "models" / "all-MiniLM-L6-v2.gguf")
    backend = {"name": "minilm", "engine": "llama_cpp", "model": minilm, "serves": "embeddings", "threads": 2}
    library(folder / "library")
    base = {"backends": [backend], "models": [{"name": "m", "route": ["minilm"]}]}
    declared = {"name": "docs", "embed": "minilm", "paths": [f"{folder}/library/*.md"]}
    (folder / "home").mkdir()
    with running(folder / "home", base) as gateway:
        knowledge = gateway.services.knowledge
        ask(gateway.loop, knowledge.embedders["minilm"].vectors(["warm"], request_id="bench"))
        began = time.perf_counter()
        assert gateway.reload(base | {"collections": [declared]})
        while gateway.services.knowledge.declared["docs"].state != "ready":
            ask(gateway.loop, asyncio.sleep(0.02))
        built_s = time.perf_counter() - began
        rows = ask(gateway.loop, _windows(gateway.services.knowledge.library))
        embedder = gateway.services.knowledge.embedders["minilm"]
        began = time.perf_counter()
        ask(gateway.loop, _alone(embedder, rows))
        alone_s = time.perf_counter() - began
    say(
        f"{FILES} files, {len(rows):,} vectors: built in {built_s:.1f} s ({len(rows) / built_s:.0f} texts/s), "
        f"the engine alone {alone_s:.1f} s ({len(rows) / alone_s:.0f} texts/s): {alone_s / built_s:.2f} x"
    )


def ask(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop).result(600)


async def _windows(library: Library) -> list[str]:
    """As many texts of the same lengths, none of them the same: nothing is cached for either."""
    async with library.database.connect() as connection:
        found = (await connection.execute(select(chunks.c.text, chunks.c.parts))).all()
    texts = []
    for text, parts in found:
        words = text.split()
        each = -(-len(words) // parts)
        texts += [" ".join(words[start * each : (start + 1) * each]) or "word" for start in range(parts)]
    return texts


async def _alone(embedder: Embedder, texts: Sequence[str]) -> None:
    """As many calls at a time as keep it busy."""
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    free = asyncio.Semaphore(6)

    async def one(batch: Sequence[str]) -> None:
        async with free:
            await embedder.vectors(batch, request_id="bench")

    await asyncio.gather(*map(one, batches))


def main() -> None:
    (ROOT / "var").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as folder:
        asyncio.run(searches(Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        filling(Path(folder))


if __name__ == "__main__":
    main()
