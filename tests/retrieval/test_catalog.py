"""Collections and their members."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.catalog import DAY_S, Catalog, Member, NewMember, Page, Stored
from retrieval.documents import NewChunk
from retrieval.errors import AlreadyDone, CursorUnknown, Gone
from retrieval.ids import declared_id
from retrieval.library import Library
from retrieval.retrievals import Retrievals
from retrieval.tables import chunks, collections, documents, file_batches, members
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

NOTHING = {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0}


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.7

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(database: AsyncEngine, clock: Clock) -> Catalog:
    return Catalog(database, clock=clock)


@pytest.fixture
async def shelf(database: AsyncEngine, tmp_path: Path, catalog: Catalog) -> AsyncIterator[Shelf]:
    shelf = Shelf(database, tmp_path)
    shelf.catalog = catalog
    yield shelf
    await shelf.aclose()


@pytest.fixture
async def docs(catalog: Catalog) -> Stored:
    return await catalog.create(name="docs", owner="role", embed="words")


def new(name: str, **attributes: object) -> NewMember:
    return NewMember(name, "file", f"{name}.md", attributes, {"type": "auto"}, "print")


async def member(catalog: Catalog, stored: Stored, name: str) -> Member:
    found = await catalog.member(stored.id, name)
    assert found is not None
    return found


async def generation(catalog: Catalog, stored: Stored) -> int:
    return (await catalog.generations())[stored.id]


async def counts(catalog: Catalog, stored: Stored) -> dict[str, int]:
    by_status, _ = (await catalog.counts([stored.id]))[stored.id]
    return {status: count for status, count in by_status.items() if count}


# -- collections


async def test_a_collection_is_stored_as_it_was_made(catalog: Catalog) -> None:
    made = await catalog.create(
        name="Ñandú 日本", owner="role", embed="words", description="d", metadata={"a": "1", "b": [1]}, expires_days=7
    )
    assert made == Stored(
        made.id, made.public_id, "Ñandú 日本", "role", "d", "words", {"a": "1", "b": [1]}, 7, 1_800_000_000,
        1_800_000_000, 0,
    )  # fmt: skip
    assert made.public_id.startswith("vs_")
    assert not made.declared
    assert await catalog.get(made.public_id) == await catalog.by_number(made.id) == made


async def test_two_collections_may_have_one_name(catalog: Catalog, docs: Stored) -> None:
    again = await catalog.create(name="docs", owner="role", embed="words")
    assert again.public_id != docs.public_id
    assert again.id != docs.id


@pytest.mark.parametrize("id_", ["", "vs_", "vs_nobody", "docs", "' OR 1=1 --", "%"])
async def test_a_collection_that_is_not_there_is_none(catalog: Catalog, docs: Stored, id_: str) -> None:
    assert await catalog.get(id_) is None
    assert await catalog.by_number(docs.id + 1) is None


async def test_a_declared_collection_is_the_same_at_every_start(catalog: Catalog, docs: Stored) -> None:
    first = await catalog.declare("docs", "words")
    assert first.declared
    assert first.public_id == declared_id("docs")
    assert first.id != docs.id
    assert await catalog.declare("docs", "words") == first
    assert await catalog.declare("docs", "another") == first, "what it is embedded by is changed by whoever rebuilds it"
    assert (await catalog.declare("other", "words")).id != first.id


async def test_what_is_updated_stays_and_the_rest_is_as_before(catalog: Catalog, docs: Stored, clock: Clock) -> None:
    clock.now_s += 10
    changed = await catalog.update(docs, name="new", metadata={"k": "v"}, expires_days=3)
    assert changed is not None
    assert changed == await catalog.get(docs.public_id)
    assert (changed.name, changed.metadata, changed.expires_days) == ("new", {"k": "v"}, 3)
    assert (changed.description, changed.owner, changed.created_at) == ("", "role", docs.created_at)
    assert changed.last_active_at == docs.last_active_at + 10
    again = await catalog.update(docs, expires_days=None, description="d")
    assert again is not None
    assert (again.name, again.expires_days, again.description) == ("new", None, "d")


async def test_a_collection_that_has_gone_cannot_be_updated(catalog: Catalog, docs: Stored) -> None:
    await catalog.delete(docs)
    assert await catalog.update(docs, name="new") is None
    await catalog.touch(docs.id)
    await catalog.delete(docs)
    assert await catalog.get(docs.public_id) is None


async def test_deleting_takes_everything_and_only_of_this_one(shelf: Shelf, catalog: Catalog) -> None:
    docs, other = await shelf.store("docs"), await shelf.store("other")
    for stored in (docs, other):
        await shelf.put(stored, "a.md", [NewChunk("", "llama", 1)])
        await shelf.put(stored, "b.md", [NewChunk("", "condor", 1)])
        target = await shelf.target(stored, "a.md")
        await shelf.draft(target, {"a newer llama": np.ones((1, 4), np.float32)}, fingerprint="g")
        await catalog.attach(stored.id, [new("c")], batch=await catalog.open_batch(stored.id))
    await catalog.delete(docs)
    assert await catalog.get(docs.public_id) is None
    assert await catalog.all_members(docs.id) == []
    assert set(await catalog.generations()) == {other.id}
    rows = [await shelf.rows(table) for table in (collections, members, documents, chunks, file_batches)]
    assert rows == [1, 3, 3, 3, 1]
    assert len(await shelf.lexical.search(other.id, "llama condor", 5)) == 2


async def test_ids_are_never_given_twice(catalog: Catalog, docs: Stored) -> None:
    await catalog.attach(docs.id, [new("a")])
    before = await member(catalog, docs, "a")
    await catalog.delete(docs)
    again = await catalog.create(name="docs", owner="role", embed="words")
    await catalog.attach(again.id, [new("a")])
    assert again.id > docs.id
    assert (await member(catalog, again, "a")).id > before.id


# -- lists


async def ids(catalog: Catalog, page: Page, owner: str | None = "role", declared: Sequence[str] = ()) -> list[str]:
    return [one.name for one in await catalog.listed(page, owner=owner, declared=declared)]


async def test_a_role_sees_its_own_collections_and_the_declared_ones_it_may(catalog: Catalog) -> None:
    for owner in ("role", "other"):
        await catalog.create(name=owner, owner=owner, embed="words")
    shown, hidden = await catalog.declare("shown", "words"), await catalog.declare("hidden", "words")
    everything = Page(ascending=True)
    assert await ids(catalog, everything) == ["role"]
    assert await ids(catalog, everything, declared=[shown.public_id]) == ["role", "shown"]
    assert await ids(catalog, everything, owner="nobody") == []
    assert await ids(catalog, everything, owner=None) == ["role", "other"]
    assert await ids(catalog, everything, owner=None, declared=[hidden.public_id]) == ["role", "other", "hidden"]


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("what", ["collections", "members"])
async def test_pages_are_what_lies_between_their_cursors(
    catalog: Catalog, docs: Stored, what: str, ascending: bool
) -> None:
    """For every pair of cursors and every limit; one more than the limit says that there is more."""
    if what == "collections":
        made = [await catalog.create(name=str(number), owner="pages", embed="words") for number in range(5)]
        public = [one.public_id for one in made]
    else:
        public = list("caebd")
        await catalog.attach(docs.id, [new(name) for name in public])
        other = await catalog.create(name="other", owner="role", embed="words")
        await catalog.attach(other.id, [new(name) for name in "zabc"])
    order = public if ascending else public[::-1]

    async def asked(page: Page) -> list[str]:
        if what == "collections":
            return [one.public_id for one in await catalog.listed(page, owner="pages", declared=())]
        return [one.public_id for one in await catalog.members(docs.id, page)]

    for after in (None, *order):
        for before in (None, *order):
            first = 0 if after is None else order.index(after) + 1
            last = len(order) if before is None else order.index(before)
            for limit in (1, 3, 100):
                page = Page(limit, after, before, ascending)
                assert await asked(page) == order[first : max(first, last)][: limit + 1], page
    for cursors in ({"after": "nobody"}, {"before": "nobody"}, {"after": order[0], "before": "nobody"}):
        with pytest.raises(CursorUnknown):
            await asked(Page(ascending=ascending, **cursors))


async def test_a_cursor_of_another_collection_is_none(catalog: Catalog, docs: Stored) -> None:
    other = await catalog.create(name="other", owner="role", embed="words")
    await catalog.attach(other.id, [new("x")])
    await catalog.attach(docs.id, [new("a"), new("b")])
    for cursor in ({"after": "x"}, {"before": "x"}):
        with pytest.raises(CursorUnknown):
            await catalog.members(docs.id, Page(**cursor))


async def test_a_page_goes_on_after_what_was_deleted_meanwhile(catalog: Catalog, docs: Stored) -> None:
    await catalog.attach(docs.id, [new(name) for name in "abc"])
    await catalog.detach(docs.id, ["b"])
    assert [one.public_id for one in await catalog.members(docs.id, Page(after="b"))] == ["a"]
    assert [one.public_id for one in await catalog.members(docs.id, Page(after="c"))] == ["a"]


async def test_members_are_listed_by_status_and_batch(shelf: Shelf, catalog: Catalog) -> None:
    docs = await shelf.store("docs")
    batch = await catalog.open_batch(docs.id)
    await catalog.attach(docs.id, [new("a"), new("b")], batch=batch)
    await shelf.put(docs, "c", [NewChunk("", "text", 1)])
    await catalog.attach(docs.id, [new("d")])

    async def names(**which: str) -> list[str]:
        return [one.public_id for one in await catalog.members(docs.id, Page(ascending=True), **which)]

    assert await names() == ["a", "b", "c", "d"]
    assert await names(status="completed") == ["c"]
    assert await names(status="in_progress") == ["a", "b", "d"]
    assert await names(status="failed") == []
    assert await names(batch=batch) == ["a", "b"]
    assert await names(batch=batch, status="completed") == []
    assert await names(batch="vsfb_nobody") == []


# -- expiry


async def test_a_collection_expires_so_many_days_after_it_was_used(catalog: Catalog, clock: Clock) -> None:
    one = await catalog.create(name="one", owner="role", embed="words", expires_days=2)
    await catalog.create(name="for ever", owner="role", embed="words")
    assert one.expires_at == one.last_active_at + 2 * DAY_S
    clock.now_s += 2 * DAY_S - 1
    assert not one.expired(clock())
    assert await catalog.expired() == []
    clock.now_s += 1
    assert one.expired(clock())
    assert [stored.name for stored in await catalog.expired()] == ["one"]
    await catalog.touch(one.id)
    assert await catalog.expired() == []
    clock.now_s += 2 * DAY_S
    assert [stored.name for stored in await catalog.expired()] == ["one"]


async def test_what_has_expired_is_deleted_in_the_background_with_all_that_is_in_it(
    shelf: Shelf, catalog: Catalog, clock: Clock, tmp_path: Path
) -> None:
    ended = await catalog.create(name="ended", owner="role", embed="words", expires_days=2)
    lasts = await catalog.create(name="lasts", owner="role", embed="words", expires_days=3)
    for stored in (ended, lasts, await shelf.store("for ever")):
        await shelf.put(stored, "a.md", [NewChunk("", "text", 1)])
    turns = asyncio.Queue[float]()

    async def sleep(seconds: float) -> None:
        turns.put_nowait(seconds)
        await asyncio.Event().wait()

    clock.now_s += 2 * DAY_S
    retrievals = Retrievals(shelf.database)
    stock = shelf.documents, shelf.files, shelf.lexical, retrievals
    job = asyncio.create_task(Library(shelf.database, catalog, *stock, folder=tmp_path, sleep=sleep).run())
    await turns.get()
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    assert await catalog.get(ended.public_id) is None
    found = await catalog.listed(Page(ascending=True), owner=None, declared=())
    assert [stored.name for stored in found] == ["lasts", "for ever"]
    assert [await shelf.rows(table) for table in (members, documents, chunks)] == [2, 2, 2]


async def test_touching_never_brings_the_end_nearer(catalog: Catalog, docs: Stored, clock: Clock) -> None:
    before = await generation(catalog, docs)
    clock.now_s -= 1000
    await catalog.touch(docs.id)
    assert await catalog.get(docs.public_id) == docs
    clock.now_s += 1005
    await catalog.touch(docs.id)
    found = await catalog.get(docs.public_id)
    assert found is not None
    assert found.last_active_at == docs.last_active_at + 5
    assert await generation(catalog, docs) == before, "what can be found is the same"


@pytest.mark.parametrize("change", ["update", "attach", "detach", "attributes"])
async def test_changes_are_uses(catalog: Catalog, docs: Stored, clock: Clock, change: str) -> None:
    await catalog.attach(docs.id, [new("a")])
    clock.now_s += 100
    if change == "update":
        await catalog.update(docs, name="new")
    elif change == "attach":
        await catalog.attach(docs.id, [new("b")])
    elif change == "detach":
        await catalog.detach(docs.id, ["a"])
    else:
        await catalog.set_attributes(await member(catalog, docs, "a"), {"x": 1})
    found = await catalog.get(docs.public_id)
    assert found is not None
    assert found.last_active_at == docs.last_active_at + 100


# -- members


async def test_a_member_is_attached_as_it_was_asked(catalog: Catalog, docs: Stored) -> None:
    await catalog.attach(docs.id, [new("a", year=2024, draft=False)], batch="batch")
    found = await member(catalog, docs, "a")
    assert found == Member(
        found.id, docs.id, "a", "file", "a.md", {"year": 2024, "draft": False}, {"type": "auto"}, "in_progress", "", "",
        0, 1_800_000_000, "batch", "print", None, 0, 0,
    )  # fmt: skip
    assert await catalog.all_members(docs.id) == [found]
    assert await catalog.member(docs.id + 1, "a") is None
    assert await catalog.member(docs.id, "b") is None


async def test_attaching_again_builds_anew_and_leaves_what_is_found(shelf: Shelf, catalog: Catalog) -> None:
    docs = await shelf.store("docs")
    made = await shelf.put(docs, "a", [NewChunk("", "llama", 1)], old=1)
    before, moves = await member(catalog, docs, "a"), await generation(catalog, docs)
    await catalog.attach(
        docs.id, [NewMember("a", "path", "other name", {"new": 2}, {"type": "static"}, "p")], batch="b"
    )
    again = await member(catalog, docs, "a")
    assert (again.id, again.document_id, again.created_at) == (before.id, before.document_id, before.created_at)
    assert (again.status, again.version, again.attributes) == ("in_progress", before.version + 1, {"new": 2})
    assert (again.kind, again.name, again.chunking, again.batch_id) == ("path", "other name", {"type": "static"}, "b")
    assert [id_ for id_, _ in await shelf.lexical.search(docs.id, "llama", 5)] == made
    assert list(await shelf.documents.chunks(made)) == made
    assert await generation(catalog, docs) > moves


async def test_attaching_again_forgets_why_it_failed(shelf: Shelf, catalog: Catalog) -> None:
    docs = await shelf.store("docs")
    target = await shelf.target(docs, "a")
    assert await shelf.documents.fail(target, "invalid_file", "no text")
    assert (await member(catalog, docs, "a")).error_code == "invalid_file"
    await catalog.attach(docs.id, [new("a")])
    again = await member(catalog, docs, "a")
    assert (again.status, again.error_code, again.error_message) == ("in_progress", "", "")


async def test_the_same_member_twice_in_a_list_is_there_once(catalog: Catalog, docs: Stored) -> None:
    await catalog.attach(docs.id, [new("a", x=1), new("b"), new("a", x=2)])
    found = await catalog.all_members(docs.id)
    assert sorted(one.public_id for one in found) == ["a", "b"]
    assert (await member(catalog, docs, "a")).attributes == {"x": 2}


async def test_nothing_can_be_attached_to_a_collection_that_has_gone(shelf: Shelf, catalog: Catalog) -> None:
    docs = await shelf.store("docs")
    await catalog.delete(docs)
    with pytest.raises(Gone):
        await catalog.attach(docs.id, [new("a")])
    with pytest.raises(Gone):
        await catalog.open_batch(docs.id)
    assert [await shelf.rows(table) for table in (members, file_batches)] == [0, 0]


async def test_a_member_that_is_attached_by_many_at_once_is_there_once(catalog: Catalog, docs: Stored) -> None:
    await asyncio.gather(*(catalog.attach(docs.id, [new("a", by=number)]) for number in range(8)))
    (found,) = await catalog.all_members(docs.id)
    assert found.version == 7


async def test_attributes_change_without_a_build(shelf: Shelf, catalog: Catalog) -> None:
    docs = await shelf.store("docs")
    made = await shelf.put(docs, "a", [NewChunk("", "llama", 1)], old=1)
    before, moves = await member(catalog, docs, "a"), await generation(catalog, docs)
    await catalog.set_attributes(before, {"new": "ñ", "n": 1.5})
    after = await member(catalog, docs, "a")
    assert (after.attributes, after.status, after.version) == ({"new": "ñ", "n": 1.5}, "completed", before.version)
    assert (await shelf.documents.chunks(made))[made[0]].attributes == {"new": "ñ", "n": 1.5}
    assert await generation(catalog, docs) > moves, "searches hear of it"


async def test_detaching_takes_members_with_all_that_they_say(shelf: Shelf, catalog: Catalog) -> None:
    docs, other = await shelf.store("docs"), await shelf.store("other")
    for stored in (docs, other):
        for name in "abc":
            await shelf.put(stored, name, [NewChunk("", f"llama {name}", 1)])
    await shelf.draft(await shelf.target(docs, "a"), {"newer": np.ones((1, 4), np.float32)}, fingerprint="g")
    moves = await generation(catalog, docs)
    assert await catalog.detach(docs.id, ["a", "c", "nobody"]) == 2
    assert [one.public_id for one in await catalog.all_members(docs.id)] == ["b"]
    assert await generation(catalog, docs) > moves
    assert await shelf.orphans() == {"documents": 0, "chunks": 0}
    assert await shelf.in_full_text(docs) == await shelf.live_chunks(docs)
    assert [await shelf.rows(table) for table in (documents, chunks)] == [4, 4]
    assert len(await shelf.lexical.search(docs.id, "llama", 9)) == 1
    assert len(await shelf.lexical.search(other.id, "llama", 9)) == 3
    assert await catalog.detach(docs.id, []) == 0
    assert await catalog.detach(docs.id, ["a"]) == 0


async def test_more_members_than_a_query_takes_arguments_can_be_detached(catalog: Catalog, docs: Stored) -> None:
    names = [f"n{number}" for number in range(1200)]
    await catalog.attach(docs.id, [new(name) for name in names])
    assert await catalog.detach(docs.id, names) == 1200


async def test_a_file_leaves_all_collections_and_a_path_of_that_name_stays(shelf: Shelf, catalog: Catalog) -> None:
    stores = [await shelf.store(name) for name in ("one", "two", "three")]
    for stored in stores[:2]:
        await shelf.put(stored, "file-1", [NewChunk("", "llama", 1)])
        await shelf.put(stored, "file-2", [NewChunk("", "llama", 1)])
    await catalog.attach(stores[2].id, [NewMember("file-1", "path", "a", {}, {})])
    moves = await catalog.generations()
    await catalog.detach_everywhere("file-1")
    await catalog.detach_everywhere("nobody")
    assert [[one.public_id for one in await catalog.all_members(stored.id)] for stored in stores] == [
        ["file-2"], ["file-2"], ["file-1"],
    ]  # fmt: skip
    assert [len(await shelf.lexical.search(stored.id, "llama", 5)) for stored in stores] == [1, 1, 0]
    after = await catalog.generations()
    assert [after[stored.id] > moves[stored.id] for stored in stores] == [True, True, False]
    assert await shelf.orphans() == {"documents": 0, "chunks": 0}


async def test_rebuilding_builds_all_members_anew_and_leaves_what_is_found(shelf: Shelf, catalog: Catalog) -> None:
    docs, other = await shelf.store("docs"), await shelf.store("other")
    made = await shelf.put(docs, "a", [NewChunk("", "llama", 1)])
    await shelf.put(other, "a", [NewChunk("", "llama", 1)])
    assert await shelf.documents.fail(await shelf.target(docs, "b"), "invalid_file", "no text")
    before = {one.public_id: one.version for one in await catalog.all_members(docs.id)}
    assert await catalog.rebuild(docs.id) == 2
    after = await catalog.all_members(docs.id)
    assert {one.public_id: one.version - 1 for one in after} == before
    assert {(one.status, one.error_code) for one in after} == {("in_progress", "")}
    assert list(await shelf.documents.chunks(made)) == made
    assert await counts(catalog, other) == {"completed": 1}
    assert await catalog.rebuild(10**6) == 0


async def test_members_are_counted_by_status_with_their_bytes(shelf: Shelf, catalog: Catalog) -> None:
    docs, empty = await shelf.store("docs"), await shelf.store("empty")
    for name in "ab":
        await shelf.put(docs, name, [NewChunk("", "text", 1)])
    assert await shelf.documents.fail(await shelf.target(docs, "c"), "invalid_file", "no text")
    await catalog.attach(docs.id, [new("d")])
    assert await catalog.counts([docs.id, empty.id]) == {
        docs.id: ({**NOTHING, "in_progress": 1, "completed": 2, "failed": 1}, 2),
        empty.id: (NOTHING, 0),
    }
    assert await catalog.counts([]) == {}


# -- batches


async def test_a_batch_tells_how_far_its_members_are(shelf: Shelf, catalog: Catalog, clock: Clock) -> None:
    docs, other = await shelf.store("docs"), await shelf.store("other")
    batch = await catalog.open_batch(docs.id)
    assert await catalog.batch(docs.id, batch) == (1_800_000_000, False, NOTHING)
    await catalog.attach(docs.id, [new("a"), new("b")], batch=batch)
    await catalog.attach(docs.id, [new("c")])
    assert await catalog.batch(docs.id, batch) == (1_800_000_000, False, {**NOTHING, "in_progress": 2})
    assert await catalog.batch(other.id, batch) is None
    assert await catalog.batch(docs.id, "vsfb_nobody") is None


async def test_cancelling_stops_what_is_not_done_yet(shelf: Shelf, catalog: Catalog) -> None:
    docs = await shelf.store("docs")
    made = await shelf.put(docs, "b", [NewChunk("", "llama", 1)])
    batch, second = await catalog.open_batch(docs.id), await catalog.open_batch(docs.id)
    await catalog.attach(docs.id, [new("a"), new("b"), new("c")], batch=batch)
    await catalog.attach(docs.id, [new("d")], batch=second)
    assert await shelf.documents.fail(await shelf.target(docs, "e"), "invalid_file", "not of the batch")
    await catalog.cancel_batch(docs.id, batch)
    assert await catalog.batch(docs.id, batch) == (1_800_000_000, True, {**NOTHING, "cancelled": 3})
    assert await catalog.batch(docs.id, second) == (1_800_000_000, False, {**NOTHING, "in_progress": 1})
    assert list(await shelf.documents.chunks(made)) == made, "what was found before still is"
    with pytest.raises(AlreadyDone):
        await catalog.cancel_batch(docs.id, batch)
    await catalog.attach(docs.id, [new("a")])
    assert (await member(catalog, docs, "a")).status == "in_progress", "it may be attached again"


@pytest.mark.parametrize("which", ["empty", "nobody", "of another collection"])
async def test_a_batch_with_nothing_in_progress_cannot_be_cancelled(catalog: Catalog, docs: Stored, which: str) -> None:
    other = await catalog.create(name="other", owner="role", embed="words")
    batch = {"nobody": "vsfb_nobody"}.get(which) or await catalog.open_batch(docs.id)
    if which == "of another collection":
        await catalog.attach(docs.id, [new("a")], batch=batch)
    with pytest.raises(AlreadyDone):
        await catalog.cancel_batch(other.id if which == "of another collection" else docs.id, batch)
    found = await catalog.batch(docs.id, batch)
    assert found is None or not found[1]
    assert "cancelled" not in await counts(catalog, docs)
