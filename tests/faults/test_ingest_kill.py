"""`kill -9` at any moment of building, replacing, removing and saving: what is found is one version or the other, whole."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database import migrate
from retrieval import leases, view
from retrieval.settings import RetrievalSettings
from retrieval.tables import chunks, documents, members
from tests.conftest import ROOT
from tests.faults.ingest_victim import DOCUMENTS, PARAGRAPHS, opened, text_of
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("CHASQUI_KILL_ROUNDS", "6"))


@pytest.mark.timeout(30 + 12 * ROUNDS)
async def test_a_killed_process_leaves_one_of_two_versions_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 0.5)
    monkeypatch.setattr(view, "EXACT_UPTO", view.EXACT_UPTO)  # `opened` makes it small
    migrate(f"sqlite:///{tmp_path}/chasqui.db")
    (tmp_path / "library").mkdir()
    for number in range(ROUNDS):
        kill_somewhere(tmp_path, seed=number)
        shelf, declared = await opened(tmp_path)
        try:
            await check_whole(shelf)
            stored = await shelf.catalog.declare("docs", "words")
            if number % 2:
                continue  # the next victim goes on with what this one has left
            await expire_claims(shelf.database)
            await declared.scan()
            await shelf.built(stored)
            await shelf.documents.sweep()
            await check_same_as_files(shelf, tmp_path / "library")
        finally:
            await shelf.aclose()
            await shelf.database.dispose()


def kill_somewhere(folder: Path, *, seed: int) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.ingest_victim", str(folder), str(seed)],
        stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):  # it never ends by itself
            victim.wait(0.05 + secrets.randbelow(2000) / 1000)
    finally:
        victim.kill()
        victim.communicate()


async def expire_claims(database: AsyncEngine) -> None:
    """As the seconds that the dead one's claims still last would."""
    async with database.begin() as connection:
        for table in ("members", "collections"):
            await connection.execute(text(f"UPDATE {table} SET claimed_until = 0 WHERE claimed_by <> ''"))


async def check_whole(shelf: Shelf) -> None:
    """Of every document that is found, all paragraphs of one version; and the full text agrees."""
    query = (
        select(members.c.name, chunks.c.text)
        .join(documents, documents.c.id == members.c.document_id)
        .join(chunks, chunks.c.document_id == documents.c.id)
        .order_by(members.c.name, chunks.c.ordinal)
    )
    found: dict[str, str] = {}
    async with shelf.database.connect() as connection:
        for name, piece in await connection.execute(query):
            found[name] = f"{found.get(name, '')} {piece}"
    for name, said in found.items():
        versions = {version for version in "AB" if f"version{version}" in said}
        assert len(versions) == 1, (name, versions)
        assert all(f"Paragraph {number} of" in said for number in range(PARAGRAPHS)), name
    await check_full_text(shelf)


async def check_full_text(shelf: Shelf) -> None:
    """The index of words holds the chunks that are found, and no others."""
    stored = await shelf.catalog.declare("docs", "words")
    live = select(chunks.c.id).join(members, members.c.document_id == chunks.c.document_id)
    async with shelf.database.connect() as connection:
        wanted = set((await connection.execute(live)).scalars().all())
        rows = await connection.execute(
            text(f"SELECT rowid FROM text_{stored.id} WHERE text_{stored.id} MATCH 'document'")
        )
        assert set(rows.scalars().all()) == wanted


async def check_same_as_files(shelf: Shelf, library: Path) -> None:
    """What is found is what the files say, by meaning and by words; nothing else is left, in the database or in memory."""
    stored = await shelf.catalog.declare("docs", "words")
    there = {path.name: path.read_text() for path in library.glob("*.md")}
    counts, _ = (await shelf.catalog.counts([stored.id]))[stored.id]
    assert counts == {"completed": len(there), "in_progress": 0, "failed": 0, "cancelled": 0}
    assert await shelf.orphans() == {"documents": 0, "chunks": 0}
    seen = await shelf.library.view(stored, shelf.embedder)
    async with shelf.database.connect() as connection:
        rows = (await connection.execute(select(chunks.c.parts))).scalars().all()
    assert len(seen) == sum(rows)
    for document in range(DOCUMENTS):
        for version in "AB":
            wanted = there.get(f"{document}.md") == text_of(document, version)
            first = f"Document {document}\n" + text_of(document, version).split("\n\n")[1][:200]
            words = f"version{version} document{document}"
            for mode, query in (("dense", first), ("lexical", words)):
                settings = RetrievalSettings.model_validate({"mode": mode, "top_k": 50, "candidates": 200})
                if not there:
                    continue
                findings = await shelf.searcher.search([stored], [query], settings, request_id="r")
                exact = [one for one in findings.found if f"version{version} in document{document}" in one.text]
                assert bool(exact) == wanted, (query, mode)
