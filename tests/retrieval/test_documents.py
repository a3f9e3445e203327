"""Versions of what members say."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.catalog import Member, NewMember, Stored
from retrieval.documents import IDS_AT_ONCE, Chunk, NewChunk, Target
from retrieval.errors import Overtaken
from retrieval.tables import chunks, documents
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

Change = Callable[[Shelf, Stored, Target], Awaitable[object]]


@pytest.fixture
async def shelf(database: AsyncEngine, tmp_path: Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(database, tmp_path)
    yield shelf
    await shelf.aclose()


@pytest.fixture
async def docs(shelf: Shelf) -> Stored:
    return await shelf.store("docs")


def says(*texts: str) -> dict[str, NDArray[np.float32]]:
    """Texts, each with vectors of its own; as many as it has words."""
    return {text: np.eye(8, dtype=np.float32)[: len(text.split())] for text in texts}


async def member(shelf: Shelf, stored: Stored, name: str = "a.md") -> Member:
    found = await shelf.catalog.member(stored.id, name)
    assert found is not None
    return found


async def found(shelf: Shelf, stored: Stored, words: str = "llama") -> list[str]:
    """Texts that the full text leads to."""
    shelf.lexical.forget(stored.id)
    ids = [id_ for id_, _ in await shelf.lexical.search(stored.id, words, 50)]
    known = await shelf.documents.chunks(ids)
    assert known.keys() == set(ids), "what is in the full text can be read"
    return sorted(chunk.text for chunk in known.values())


async def whole(shelf: Shelf, stored: Stored) -> None:
    """Nothing is there that belongs to nothing, and the full text knows what can be found and nothing else."""
    await shelf.documents.sweep()
    assert await shelf.orphans() == {"documents": 0, "chunks": 0}
    assert await shelf.in_full_text(stored) == await shelf.live_chunks(stored)
    for one in await shelf.catalog.all_members(stored.id):
        if one.document_id is not None:
            assert await shelf.documents.fingerprint(one.document_id), "it names a document that is there"


# -- a build


async def test_a_build_is_found_when_it_is_swapped_in_and_not_before(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs, year=2024)
    document, done = await shelf.documents.begin(target, fingerprint="f", embedding="m", title="Title")
    assert done == 0
    new = [NewChunk("Title > Part", "llama one", 3, 7), NewChunk("", "llama two", 4)]
    matrices = list(says("llama one", "llama two").values())
    await shelf.documents.add(target, document, new[:1], matrices[:1], first=0)
    await shelf.documents.add(target, document, new[1:], matrices[1:], first=1)
    generation = (await shelf.catalog.generations())[docs.id]
    assert await found(shelf, docs) == []
    assert await shelf.documents.live(docs.id) == {}
    assert await shelf.documents.of_document(document) == []
    assert await shelf.documents.swap(target, document, usage_bytes=9)
    assert await found(shelf, docs) == ["llama one", "llama two"]
    assert {id_: one[:2] for id_, one in (await shelf.documents.live(docs.id)).items()} == {
        document: ("m", {"year": 2024})
    }
    first, second = await shelf.documents.of_document(document)
    assert first == Chunk(
        first.id, document, 0, "docs", docs.public_id, "a.md", "a.md", "file", "Title", "Title > Part", 7, "llama one",
        3, {"year": 2024},
    )  # fmt: skip
    assert (second.ordinal, second.heading, second.page, second.text) == (1, "", None, "llama two")
    after = await member(shelf, docs)
    assert (after.status, after.document_id, after.usage_bytes) == ("completed", document, 9)
    assert (await shelf.catalog.generations())[docs.id] > generation
    await whole(shelf, docs)


async def test_a_source_names_its_page_and_heading_where_it_has_them(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs)
    document, _ = await shelf.documents.begin(target, fingerprint="f", embedding="m", title="")
    new = [NewChunk("Quotas", "a", 1, 3), NewChunk("", "b", 1, 4), NewChunk("Quotas", "c", 1), NewChunk("", "d", 1)]
    await shelf.documents.add(target, document, new, list(says("a", "b", "c", "d").values()), first=0)
    assert await shelf.documents.swap(target, document, usage_bytes=1)
    assert [chunk.source for chunk in await shelf.documents.of_document(document)] == [
        "a.md, page 3 — Quotas", "a.md, page 4", "a.md — Quotas", "a.md",
    ]  # fmt: skip


async def test_a_new_version_takes_the_place_of_the_old_one(shelf: Shelf, docs: Stored) -> None:
    old = await shelf.place(docs, "a.md", says("llama one", "llama two", "llama three"))
    before = await member(shelf, docs)
    target = await shelf.target(docs)
    document = await shelf.draft(target, says("llama four"), fingerprint="new")
    assert await found(shelf, docs) == ["llama one", "llama three", "llama two"]
    assert (await shelf.documents.chunks(list(old))).keys() == old.keys()
    assert await shelf.documents.swap(target, document, usage_bytes=1)
    assert await found(shelf, docs) == ["llama four"]
    assert await shelf.documents.chunks(list(old)) == {}
    assert before.document_id is not None
    assert await shelf.documents.fingerprint(before.document_id) == ""
    assert await shelf.documents.fingerprint(document) == "new"
    assert not set(old) & {chunk.id for chunk in await shelf.documents.of_document(document)}
    assert await shelf.rows(documents) == 1
    await whole(shelf, docs)


async def test_a_document_may_have_nothing_to_say(shelf: Shelf, docs: Stored) -> None:
    await shelf.place(docs, "a.md", says("llama"))
    assert await shelf.place(docs, "a.md", {}) == {}
    assert await found(shelf, docs) == []
    await whole(shelf, docs)


async def test_an_interrupted_build_goes_on_where_it_was(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs)
    begun = await shelf.draft(target, says("llama one", "llama two"), fingerprint="f")
    document, done = await shelf.documents.begin(target, fingerprint="f", embedding="m", title="T")
    assert (document, done) == (begun, 2)
    whole_text = says("llama one", "llama two", "llama three")
    assert await shelf.draft(target, whole_text, fingerprint="f") == begun
    assert await shelf.documents.swap(target, begun, usage_bytes=1)
    assert [chunk.text for chunk in await shelf.documents.of_document(begun)] == list(whole_text)
    await whole(shelf, docs)


async def test_a_build_that_was_begun_of_something_else_is_dropped(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs)
    begun = await shelf.draft(target, says("llama one"), fingerprint="old")
    document, done = await shelf.documents.begin(target, fingerprint="new", embedding="m", title="T")
    assert document != begun
    assert done == 0
    assert await shelf.documents.fingerprint(begun) == ""
    assert await shelf.rows(chunks) == 0


async def test_a_build_goes_on_after_it_was_asked_for_again(shelf: Shelf, docs: Stored) -> None:
    """The same content under a new version of the member."""
    begun = await shelf.draft(await shelf.target(docs), says("llama one"), fingerprint="f")
    again = await shelf.target(docs)
    assert await shelf.draft(again, says("llama one", "llama two"), fingerprint="f") == begun
    assert await shelf.documents.swap(again, begun, usage_bytes=1)
    assert await found(shelf, docs) == ["llama one", "llama two"]
    await whole(shelf, docs)


async def test_what_is_found_is_not_what_a_build_goes_on_with(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs)
    first = await shelf.draft(target, says("llama one"), fingerprint="f")
    assert await shelf.documents.swap(target, first, usage_bytes=1)
    again = await shelf.target(docs)
    document, done = await shelf.documents.begin(again, fingerprint="f", embedding="m", title="T")
    assert document != first
    assert done == 0
    assert await found(shelf, docs) == ["llama one"]


async def test_members_do_not_go_on_with_each_others_builds(shelf: Shelf, docs: Stored) -> None:
    one = await shelf.draft(await shelf.target(docs, "a.md"), says("llama one"), fingerprint="f")
    other, done = await shelf.documents.begin(
        await shelf.target(docs, "b.md"), fingerprint="f", embedding="m", title="T"
    )
    assert other != one
    assert done == 0
    assert await shelf.documents.fingerprint(one) == "f"


async def test_chunks_and_vectors_have_to_be_as_many(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs)
    document, _ = await shelf.documents.begin(target, fingerprint="f", embedding="m", title="")
    with pytest.raises(ValueError):
        await shelf.documents.add(
            target, document, [NewChunk("", "a", 1), NewChunk("", "b", 1)], [np.ones((1, 4))], first=0
        )
    assert await shelf.rows(chunks) == 0


async def test_keeping_changes_the_state_and_nothing_else(shelf: Shelf, docs: Stored) -> None:
    made = await shelf.place(docs, "a.md", says("llama"))
    before = await member(shelf, docs)
    target = await shelf.target(docs)
    generation = (await shelf.catalog.generations())[docs.id]
    assert await shelf.documents.keep(target)
    after = await member(shelf, docs)
    assert (after.status, after.document_id, after.usage_bytes) == ("completed", before.document_id, 1)
    assert (await shelf.catalog.generations())[docs.id] == generation
    assert (await shelf.documents.chunks(list(made))).keys() == made.keys()


async def test_what_cannot_be_built_says_why_and_nothing_else(shelf: Shelf, docs: Stored) -> None:
    made = await shelf.place(docs, "a.md", says("llama one"))
    await shelf.place(docs, "b.md", says("llama of another"))
    target = await shelf.target(docs)
    await shelf.draft(target, says("llama half"), fingerprint="new")
    generation = (await shelf.catalog.generations())[docs.id]
    assert await shelf.documents.fail(target, "invalid_file", "x" * 2000)
    after = await member(shelf, docs)
    assert (after.status, after.document_id, after.usage_bytes) == ("failed", None, 0)
    assert (after.error_code, after.error_message) == ("invalid_file", "x" * 500)
    assert await found(shelf, docs) == ["llama of another"]
    assert await shelf.documents.chunks(list(made)) == {}
    assert (await shelf.catalog.generations())[docs.id] > generation
    assert await shelf.rows(documents) == 1
    await whole(shelf, docs)


# -- a build that was overtaken


async def attached_again(shelf: Shelf, stored: Stored, _: Target) -> None:
    await shelf.target(stored)


async def detached(shelf: Shelf, stored: Stored, _: Target) -> None:
    assert await shelf.catalog.detach(stored.id, ["a.md"]) == 1


async def detached_and_attached(shelf: Shelf, stored: Stored, target: Target) -> None:
    await detached(shelf, stored, target)
    await attached_again(shelf, stored, target)


async def file_deleted(shelf: Shelf, _: Stored, __: Target) -> None:
    await shelf.catalog.detach_everywhere("a.md")


async def cancelled(shelf: Shelf, stored: Stored, _: Target) -> None:
    batch = (await member(shelf, stored)).batch_id
    await shelf.catalog.cancel_batch(stored.id, batch)


async def rebuilt(shelf: Shelf, stored: Stored, _: Target) -> None:
    await shelf.catalog.rebuild(stored.id)


async def collection_deleted(shelf: Shelf, stored: Stored, _: Target) -> None:
    await shelf.catalog.delete(stored)


CHANGES = [attached_again, detached, detached_and_attached, file_deleted, cancelled, rebuilt, collection_deleted]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", ["nothing", "an older version"])
@pytest.mark.parametrize("end", ["swap", "keep", "fail"])
async def test_a_build_that_was_overtaken_changes_nothing(
    shelf: Shelf, docs: Stored, change: Change, before: str, end: str
) -> None:
    await shelf.place(docs, "b.md", says("llama of another"))
    if before == "an older version":
        await shelf.place(docs, "a.md", says("llama before"))
    target = await shelf.target(docs)
    document = await shelf.draft(target, says("llama one", "llama two"), fingerprint="f")
    await change(shelf, docs, target)
    stays = [one for one in await shelf.catalog.all_members(docs.id) if one.public_id == "a.md"]
    texts = await found(shelf, docs) if change is not collection_deleted else []
    if end == "swap":
        assert not await shelf.documents.swap(target, document, usage_bytes=1)
    elif end == "keep":
        assert not await shelf.documents.keep(target)
    else:
        assert not await shelf.documents.fail(target, "invalid_file", "no text")
    assert [one for one in await shelf.catalog.all_members(docs.id) if one.public_id == "a.md"] == stays
    if change is collection_deleted:
        assert [await shelf.rows(table) for table in (documents, chunks)] == [0, 0]
    else:
        assert await found(shelf, docs) == texts
        await shelf.catalog.detach(docs.id, ["a.md"])
        await whole(shelf, docs)
        assert await found(shelf, docs) == ["llama of another"]


@pytest.mark.parametrize("change", [detached, file_deleted, collection_deleted])
async def test_a_build_of_what_has_gone_finds_out_and_leaves_nothing(
    shelf: Shelf, docs: Stored, change: Change
) -> None:
    target = await shelf.target(docs)
    document = await shelf.draft(target, says("llama one"), fingerprint="f")
    await change(shelf, docs, target)
    with pytest.raises(Overtaken):
        await shelf.documents.add(target, document, [NewChunk("", "llama two", 1)], [np.ones((1, 4))], first=1)
    with pytest.raises(Overtaken):
        await shelf.documents.begin(target, fingerprint="f", embedding="m", title="T")
    assert not await shelf.documents.swap(target, document, usage_bytes=1)
    assert [await shelf.rows(table) for table in (documents, chunks)] == [0, 0]


async def test_the_newer_of_two_builds_is_the_one_that_counts(shelf: Shelf, docs: Stored) -> None:
    older = await shelf.target(docs)
    one = await shelf.draft(older, says("llama old"), fingerprint="old")
    newer = await shelf.target(docs)
    other = await shelf.draft(newer, says("llama new"), fingerprint="new")
    assert await shelf.documents.swap(newer, other, usage_bytes=1)
    assert not await shelf.documents.swap(older, one, usage_bytes=1)
    assert not await shelf.documents.fail(older, "invalid_file", "no text")
    assert await found(shelf, docs) == ["llama new"]
    await whole(shelf, docs)


# -- what nobody goes on with


async def test_sweeping_takes_what_nobody_goes_on_with(shelf: Shelf, docs: Stored) -> None:
    """A build that was cancelled, and one beside what was kept; not one that is in progress, nor what is found."""
    live = await shelf.place(docs, "live.md", says("llama live"))
    goes_on = await shelf.draft(await shelf.target(docs, "goes on.md"), says("llama half"), fingerprint="f")
    await shelf.place(docs, "kept.md", says("llama kept"))
    target = await shelf.target(docs, "kept.md")
    unkept = await shelf.draft(target, says("llama unkept"), fingerprint="other")
    batch = await shelf.catalog.open_batch(docs.id)
    await shelf.catalog.attach(docs.id, [NewMember("cancelled.md", "file", "cancelled.md", {}, {})], batch=batch)
    one = await member(shelf, docs, "cancelled.md")
    dropped = await shelf.draft(Target(one.id, docs.id, one.version), says("llama dropped"), fingerprint="f")
    assert await shelf.documents.sweep() == 0, "all are in progress"
    assert await shelf.documents.keep(target)
    await shelf.catalog.cancel_batch(docs.id, batch)
    assert await shelf.documents.sweep() == 2
    assert [await shelf.documents.fingerprint(document) for document in (unkept, dropped, goes_on)] == ["", "", "f"]
    assert (await shelf.documents.chunks(list(live))).keys() == live.keys()
    assert await found(shelf, docs) == ["llama kept", "llama live"]
    assert await shelf.in_full_text(docs) == await shelf.live_chunks(docs)
    assert await shelf.documents.sweep() == 0


# -- reading


async def test_vectors_come_back_with_the_same_bits_and_their_places(shelf: Shelf, docs: Stored) -> None:
    strange = np.array([[0.0, -0.0, 1e-45, 3.4e38], [np.pi, -1.5, 1 / 3, 2**-126]], np.float32)
    made = await shelf.place(docs, "a.md", {"one": strange, "two": strange[:1], "three": strange[::-1]})
    other = await shelf.place(docs, "b.md", {"four": strange})
    await shelf.draft(await shelf.target(docs, "a.md"), {"newer": strange}, fingerprint="new")
    live = await shelf.documents.live(docs.id)
    held = await shelf.documents.held([*sorted(live), 10**9])
    assert [one.id for one in held] == sorted(live)
    first, second = list(made), list(other)
    assert [list(one.chunk_ids) for one in held] == [
        [first[0], first[0], first[1], first[2], first[2]], [second[0]] * 2,
    ]  # fmt: skip
    assert [list(one.parts) for one in held] == [[0, 1, 0, 0, 1], [0, 1]]
    assert held[0].vectors.dtype == np.float32
    assert held[0].vectors.tobytes() == np.concatenate(list(made.values())).tobytes()
    assert await shelf.documents.held([]) == []


async def test_more_documents_are_held_than_are_asked_for_at_once(shelf: Shelf, docs: Stored) -> None:
    target = await shelf.target(docs)
    count = 2 * IDS_AT_ONCE + 3
    values = {"member_id": target.member_id, "collection_id": docs.id, "fingerprint": "f", "embedding": "m"}
    async with shelf.database.begin() as connection:
        rows = [{**values, "title": "", "created_at": 1, "id": 100 + number} for number in range(count)]
        await connection.execute(insert(documents), rows)
        one = {"heading": "", "text": "x", "tokens": 1, "parts": 1, "vector": np.ones(2, "<f4").tobytes()}
        await connection.execute(
            insert(chunks), [{**one, "document_id": 100 + number, "ordinal": 0} for number in range(count)]
        )
    held = await shelf.documents.held(range(100, 100 + count))
    assert [one.id for one in held] == list(range(100, 100 + count))


async def test_chunks_are_read_by_their_place(shelf: Shelf, docs: Stored) -> None:
    await shelf.place(docs, "a.md", says(*"abcdef"))
    document = (await member(shelf, docs)).document_id
    assert document is not None

    async def texts(*places: int) -> str:
        return "".join(chunk.text for chunk in await shelf.documents.of_document(document, *places))

    assert await texts() == "abcdef"
    assert [await texts(2), await texts(0, 0), await texts(1, 3), await texts(4, 99)] == ["cdef", "a", "bcd", "ef"]
    assert [await texts(6), await texts(3, 2), await texts(-5, 0)] == ["", "", "a"]
    assert await shelf.documents.of_document(document + 1) == []


async def test_chunks_that_are_asked_for_twice_or_are_not_there(shelf: Shelf, docs: Stored) -> None:
    (one,) = await shelf.place(docs, "a.md", says("a"))
    assert list(await shelf.documents.chunks([one, one, one + 1, -1])) == [one]
    assert await shelf.documents.chunks([]) == {}
    assert list(await shelf.documents.chunks(range(one, one + 2000))) == [one]


async def test_collections_do_not_see_each_others_documents(shelf: Shelf, docs: Stored) -> None:
    other = await shelf.store("other")
    mine = await shelf.place(docs, "a.md", says("llama mine"))
    await shelf.place(other, "a.md", says("llama theirs"))
    assert len(await shelf.documents.live(docs.id)) == len(await shelf.documents.live(other.id)) == 1
    assert await found(shelf, docs) == ["llama mine"]
    assert (await shelf.documents.chunks(list(mine)))[next(iter(mine))].collection == "docs"


# -- any order, and all at once


NAMES = ("a.md", "b.md")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["attach", "begin", "swap", "keep", "fail", "detach", "cancel", "sweep", "rebuild"]),
        st.sampled_from(NAMES),
        st.sampled_from(["f", "g"]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_history_leaves_it_whole(shelf: Shelf, docs: Stored, steps: list[tuple[str, str, str]]) -> None:
    """One builder of each member, which always works on what it began last; what is found is what was swapped in last."""
    stored = await shelf.store("any")
    builds: dict[str, tuple[Target, int, str]] = {}
    should: dict[str, str] = {}
    for number, (step, name, fingerprint) in enumerate(steps):
        now = await shelf.catalog.member(stored.id, name)
        if step == "attach":
            await shelf.target(stored, name)
        elif step == "begin" and now is not None and now.status == "in_progress":
            target = Target(now.id, stored.id, now.version)
            text = f"llama {name} {fingerprint} {number}"
            document = await shelf.draft(target, says(text), fingerprint=fingerprint)
            builds[name] = (target, document, text)
        elif step in ("swap", "keep", "fail") and name in builds:
            target, document, text = builds.pop(name)
            current = now is not None and (now.id, now.version) == (target.member_id, target.version)
            if step == "swap":
                assert await shelf.documents.swap(target, document, usage_bytes=1) == current
            elif step == "keep":
                assert await shelf.documents.keep(target) == current
            else:
                assert await shelf.documents.fail(target, "invalid_file", "x") == current
            if current and step == "fail":
                should.pop(name, None)
            elif current and step == "swap":
                should[name] = name
        elif step == "detach":
            assert await shelf.catalog.detach(stored.id, [name]) == (now is not None)
            should.pop(name, None)
        elif step == "cancel" and now is not None and now.status == "in_progress":
            await shelf.catalog.cancel_batch(stored.id, now.batch_id)
        elif step == "sweep":
            await shelf.documents.sweep()
        elif step == "rebuild":
            await shelf.catalog.rebuild(stored.id)
        texts = await found(shelf, stored)
        assert sorted(text.split()[1] for text in texts) == sorted(should)
    for name in NAMES:
        now = await shelf.catalog.member(stored.id, name)
        if now is not None and now.status == "in_progress":
            assert await shelf.documents.keep(Target(now.id, stored.id, now.version))
    await whole(shelf, stored)


async def test_many_tasks_at_once_leave_everything_whole(shelf: Shelf, docs: Stored) -> None:
    """Each name has one builder, while everybody attaches, detaches and sweeps; what a build raises is what a builder tries
    again."""
    names = ["a.md", "b.md", "c.md"]

    async def attach(name: str) -> None:
        await shelf.catalog.attach(docs.id, [NewMember(name, "file", name, {}, {"type": "auto"})])

    async def builds(name: str) -> None:
        for number in range(15):
            try:
                now = await shelf.catalog.member(docs.id, name)
                if now is None:
                    await attach(name)
                    continue
                target = Target(now.id, docs.id, now.version)
                document = await shelf.draft(target, says(f"llama {name} {number}"), fingerprint=str(number))
                await shelf.documents.swap(target, document, usage_bytes=1)
            except (IntegrityError, Overtaken):
                continue

    async def attaches() -> None:
        for number in range(10):
            await attach(names[number % 3])

    async def detaches() -> None:
        for number in range(8):
            await shelf.catalog.detach(docs.id, [names[number % 3]])
            await shelf.documents.sweep()

    await asyncio.gather(*map(builds, names), attaches(), attaches(), detaches())
    for one in await shelf.catalog.all_members(docs.id):
        assert await shelf.documents.keep(Target(one.id, docs.id, one.version))
    await whole(shelf, docs)
    for name in names:
        await shelf.place(docs, name, says(f"llama {name} at last"))
    assert await found(shelf, docs) == [f"llama {name} at last" for name in names]
    await whole(shelf, docs)


async def test_a_collection_that_is_deleted_while_all_of_it_is_built_leaves_nothing(shelf: Shelf, docs: Stored) -> None:
    begun = asyncio.Barrier(6)

    async def builds(number: int) -> None:
        target = await shelf.target(docs, f"{number}.md")
        await begun.wait()
        try:
            document = await shelf.draft(target, says(f"llama {number}"), fingerprint="f")
            await shelf.documents.swap(target, document, usage_bytes=1)
        except (SQLAlchemyError, Overtaken):
            return  # it is tried again, and then there is nothing to build

    async def deletes() -> None:
        await begun.wait()
        await shelf.catalog.delete(docs)

    await asyncio.gather(*map(builds, range(5)), deletes())
    assert await shelf.catalog.get(docs.public_id) is None
    assert [await shelf.rows(table) for table in (documents, chunks)] == [0, 0]
