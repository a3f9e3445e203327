"""Collections of the configuration follow their files and pages, by a builder that may be interrupted at any moment."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.errors import BackendUnavailable, UpstreamRefused
from retrieval.catalog import Member, Stored
from retrieval.leases import Leases
from retrieval.settings import ChunkSettings, CollectionSettings, FilesSettings, RetrievalSettings
from retrieval.sources import Declared
from retrieval.tables import members
from tests.retrieval.fakes import WordsBackend
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio


class Followed:
    """A declared collection over a folder, scanned and built when the test says so."""

    def __init__(self, database: AsyncEngine, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = CollectionSettings.model_validate(
            {"name": "docs", "embed": "words", "paths": ["*.md", "*.txt"]} | settings
        )
        self.shelf = Shelf(database, folder, declared=[self.settings], limits=FilesSettings(max_mb=0.1))
        self.declared = self.watched(self.settings)

    def watched(self, settings: CollectionSettings) -> Declared:
        return Declared(
            settings,
            self.shelf.catalog,
            Leases(self.shelf.database),
            root=self.folder,
            wake=self.shelf.library.wanted.set,
        )

    async def stored(self) -> Stored:
        return await self.shelf.catalog.declare("docs", "words")

    async def follow(self) -> dict[str, Member]:
        """By name, once everything is built."""
        await self.declared.scan()
        await self.shelf.built(await self.stored())
        return {one.name: one for one in await self.shelf.catalog.all_members((await self.stored()).id)}

    async def found(self, query: str, mode: str = "lexical") -> list[str]:
        settings = RetrievalSettings.model_validate({"mode": mode})
        findings = await self.shelf.searcher.search([await self.stored()], [query], settings, request_id="r")
        return [one.chunk.path for one in findings.found]


@pytest.fixture
async def followed(database: AsyncEngine, tmp_path: Path) -> AsyncIterator[Followed]:
    (tmp_path / "a.md").write_text("# Llamas\n\nLlamas carry loads.")
    (tmp_path / "b.txt").write_text("Condors circle.")
    followed = Followed(database, tmp_path)
    yield followed
    await followed.shelf.aclose()


async def test_files_become_members_and_are_found(followed: Followed) -> None:
    members = await followed.follow()
    assert {name: one.status for name, one in members.items()} == {"a.md": "completed", "b.txt": "completed"}
    for mode in ("lexical", "dense"):
        assert (await followed.found("loads of llamas", mode))[0] == "a.md"
    assert members["a.md"].attributes == {"path": "a.md", "folder": ""}
    await followed.declared.scan()
    assert followed.declared.state == "ready"


async def test_new_changed_and_removed_files_follow(followed: Followed) -> None:
    await followed.follow()
    asked = len(followed.shelf.backend.asked)
    (followed.folder / "c.md").write_text("Quipus are knotted.")
    (followed.folder / "a.md").write_text("Alpacas hum.")
    (followed.folder / "b.txt").unlink()
    members = await followed.follow()
    assert set(members) == {"a.md", "c.md"}
    assert len(followed.shelf.backend.asked) - asked == 2
    assert await followed.found("llamas") == []
    assert await followed.found("condors") == []
    assert await followed.found("alpacas") == ["a.md"]
    assert await followed.found("knotted") == ["c.md"]
    assert await followed.shelf.orphans() == {"documents": 0, "chunks": 0}


async def test_a_file_that_was_only_touched_is_not_embedded_again(followed: Followed) -> None:
    before = (await followed.follow())["a.md"]
    asked = len(followed.shelf.backend.asked)
    os.utime(followed.folder / "a.md", ns=(1, 1))
    after = (await followed.follow())["a.md"]
    assert len(followed.shelf.backend.asked) == asked
    assert after.document_id == before.document_id
    assert after.print != before.print


async def test_other_chunks_or_another_model_read_everything_anew(followed: Followed) -> None:
    before = (await followed.follow())["a.md"].document_id
    followed.declared = followed.watched(
        followed.settings.model_copy(update={"chunk": ChunkSettings(max_tokens=16, overlap_tokens=0)})
    )
    after = (await followed.follow())["a.md"].document_id
    assert after != before
    followed.shelf.backend.seed = "another model"
    assert await followed.found("loads", "lexical") == ["a.md"]  # what it said is found by words until it is built anew
    await followed.shelf.catalog.rebuild((await followed.stored()).id)
    assert (await followed.follow())["a.md"].document_id != after
    assert (await followed.found("Llamas carry loads.", "dense"))[0] == "a.md"


async def test_a_file_that_cannot_be_read_says_why_and_disturbs_no_other(followed: Followed) -> None:
    (followed.folder / "large.md").write_text("x" * 200_000)
    (followed.folder / "binary.txt").write_bytes(b"\0\1\2" * 50)
    members = await followed.follow()
    assert {name for name, one in members.items() if one.status == "failed"} == {"large.md", "binary.txt"}
    assert "files.max_mb" in members["large.md"].error_message
    assert members["binary.txt"].error_code == "invalid_file"
    assert await followed.found("condors") == ["b.txt"]
    (followed.folder / "a.md").write_bytes(b"\0\1\2" * 50)  # what it said, it says no more
    assert (await followed.follow())["a.md"].status == "failed"
    assert await followed.found("llamas") == []


async def test_names_that_are_no_text_are_shown_as_far_as_they_are_and_read(followed: Followed) -> None:
    path = os.path.join(os.fsencode(followed.folder), b"bad\xff.md")  # noqa: PTH118
    with open(path, "w") as file:  # noqa: PTH123
        file.write("Vicunas graze.")
    members = await followed.follow()
    assert members["bad\ufffd.md"].status == "completed"
    assert await followed.found("vicunas") == ["bad\ufffd.md"]


async def test_an_engine_that_does_not_answer_is_asked_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed.shelf.backend.failures = [BackendUnavailable("words", "asleep")]
    monkeypatch.setattr("retrieval.building.MAX_DELAY_S", 0.01)
    assert {one.status for one in (await followed.follow()).values()} == {"completed"}


async def test_an_engine_that_refuses_a_text_fails_that_file_alone(followed: Followed) -> None:
    followed.shelf.backend.failures = [
        UpstreamRefused(
            "words", 400, "too odd", type_="invalid_request_error", code="odd", param=None, retry_after=None
        )
    ]
    members = await followed.follow()
    assert sorted(one.status for one in members.values()) == ["completed", "failed"]
    failed = next(one for one in members.values() if one.status == "failed")
    assert failed.error_code == "server_error"
    assert "too odd" in failed.error_message


async def test_a_build_that_was_interrupted_goes_on_where_it_was(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.building.WINDOWS_PER_CALL", 1)
    monkeypatch.setattr("retrieval.building.CALLS_AHEAD", 1)
    monkeypatch.setattr("retrieval.building.MAX_DELAY_S", 0.01)
    parts = [
        f"## Part {number}\n\n" + " ".join(f"word{number} n{number}x{place}" for place in range(100))
        for number in range(6)
    ]
    (followed.folder / "a.md").write_text("\n\n".join(parts))
    (followed.folder / "b.txt").unlink()
    backend = followed.shelf.backend
    answered = type(backend).complete
    calls = 0

    async def some_fail(self: WordsBackend, call: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise BackendUnavailable("words", "a moment")
        return await answered(self, call)

    monkeypatch.setattr(WordsBackend, "complete", some_fail)
    await followed.follow()
    texts = backend.asked
    assert len(texts) == len(set(texts))  # no text was embedded twice
    for number in range(6):
        assert set(await followed.found(f"word{number}")) == {"a.md"}


async def prints(followed: Followed) -> set[str]:
    return {one.print for one in await followed.shelf.catalog.all_members((await followed.stored()).id)}


async def test_a_member_that_changes_while_it_is_built_is_built_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = type(followed.shelf.backend).complete
    changed = False

    async def change(self: WordsBackend, call: Any) -> Any:
        nonlocal changed
        if not changed:
            changed = True
            (followed.folder / "a.md").write_text("Alpacas hum.")
            before = await prints(followed)
            while await prints(followed) == before:  # a look that meets another writer is put off
                await followed.declared.scan()
        return await answered(self, call)

    monkeypatch.setattr(WordsBackend, "complete", change)
    await followed.follow()
    assert await followed.found("alpacas") == ["a.md"]
    assert await followed.found("llamas") == []
    assert await followed.shelf.orphans() == {"documents": 0, "chunks": 0}


async def test_two_builders_share_the_work_and_do_nothing_twice(followed: Followed) -> None:
    for number in range(12):
        (followed.folder / f"{number}.md").write_text(f"File number{number} of many.")
    other = Shelf(followed.shelf.database, followed.folder, declared=[followed.settings])
    other.backend = followed.shelf.backend
    await followed.declared.scan()
    second = asyncio.create_task(other.builder.run())
    await followed.follow()
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    texts = [
        text
        for backend in {id(one.backend): one.backend for one in (followed.shelf, other)}.values()
        for text in backend.asked
    ]
    assert sorted(texts).count("0\nFile number0 of many.") <= 1
    stored = await followed.stored()
    assert (await followed.shelf.catalog.counts([stored.id]))[stored.id][0]["completed"] == 14
    await other.aclose()


async def test_who_died_loses_its_claim(followed: Followed) -> None:
    await followed.declared.scan()
    async with followed.shelf.database.begin() as connection:
        await connection.execute(update(members).values(claimed_by="dead", claimed_until=1))
    assert {one.status for one in (await followed.follow()).values()} == {"completed"}


@pytest.fixture
async def pages() -> AsyncIterator[dict[str, Any]]:
    """path -> text, or a status; with the server's `port`."""
    told: dict[str, Any] = {}

    async def answer(request: web.Request) -> web.Response:
        said = told.get(request.path, 404)
        return web.Response(status=said) if isinstance(said, int) else web.Response(text=said, content_type="text/html")

    app = web.Application()
    app.router.add_get("/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    told["port"] = runner.addresses[0][1]
    yield told
    await runner.cleanup()


async def test_pages_are_read_again_and_keep_what_they_said_while_they_do_not_answer(
    database: AsyncEngine, tmp_path: Path, pages: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"127.0.0.1:{pages['port']}"
    followed = Followed(
        database, tmp_path, paths=[], urls=[f"http://{host}/a", f"http://{host}/gone"], allow_hosts=[host]
    )
    pages["/a"] = "<html><title>A</title><body><p>Llamas carry loads.</p></body></html>"
    found = await followed.follow()
    assert found[f"http://{host}/a"].status == "completed"
    assert found[f"http://{host}/gone"].status == "failed"
    assert "404" in found[f"http://{host}/gone"].error_message
    assert await followed.found("llamas") == [f"http://{host}/a"]
    pages["/a"] = "<p>Alpacas hum.</p>"
    assert (await followed.follow())[f"http://{host}/a"].status == "completed"
    assert await followed.found("alpacas") == []  # it is not time yet
    followed.declared = followed.watched(followed.settings)
    await followed.follow()
    assert await followed.found("alpacas") == [f"http://{host}/a"]
    pages["/a"] = 503
    followed.declared = followed.watched(followed.settings)
    await followed.declared.scan()
    building = asyncio.create_task(followed.shelf.builder.run())
    while not any(one.attempts for one in await followed.shelf.catalog.all_members((await followed.stored()).id)):
        await asyncio.sleep(0)
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)
    assert await followed.found("alpacas") == [f"http://{host}/a"]
    await followed.shelf.aclose()


async def test_a_page_of_a_private_network_is_refused(
    database: AsyncEngine, tmp_path: Path, pages: dict[str, Any]
) -> None:
    url = f"http://127.0.0.1:{pages['port']}/a"
    followed = Followed(database, tmp_path, paths=[], urls=[url])
    pages["/a"] = "<p>secret</p>"
    member = (await followed.follow())[url]
    assert member.status == "failed"
    assert "private network" in member.error_message
    await followed.shelf.aclose()
