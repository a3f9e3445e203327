"""A collection in memory, and its index in files."""

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval import view as view_module
from retrieval.catalog import Stored
from retrieval.documents import Documents, Held
from retrieval.errors import FilterInvalid
from retrieval.index_usearch import UsearchIndex
from retrieval.indexes import IndexFiles, Saved
from retrieval.view import View, keys_of
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

DIMENSIONS = 16
MODEL = "m"
NEAR = 2e-3
"""What half precision may change."""

Matrix = NDArray[np.float32]


class Counting(Documents):
    """Tells whose vectors were read; fails where it is told to."""

    def __init__(self, database: AsyncEngine) -> None:
        super().__init__(database)
        self.read: list[int] = []
        self.fails = 0

    async def held(self, ids: Collection[int]) -> list[Held]:
        if self.fails:
            self.fails -= 1
            raise OperationalError("SELECT", {}, Exception("gone"))
        self.read += ids
        return await super().held(ids)


class Room:
    """A collection, what should be found in it, and views of it.

    Attributes:
        truth: vectors of each chunk that can be found.
    """

    def __init__(self, database: AsyncEngine, shelf: Shelf, stored: Stored, folder: Path) -> None:
        self.shelf, self.stored, self.folder = shelf, stored, folder
        self.documents = Counting(database)
        self.truth: dict[int, Matrix] = {}
        self.by_name: dict[str, set[int]] = {}
        self._random = np.random.default_rng(7)
        self._number = 0

    async def put(
        self, name: str, chunks: int = 1, *, parts: int = 1, model: str = MODEL, **attributes: object
    ) -> None:
        self._number += 1
        texts = {f"chunk {place} of {name} {self._number}": self.vectors(parts) for place in range(chunks)}
        made = await self.shelf.place(self.stored, name, texts, embedding=model, **attributes)
        await self._forget(name)
        if model == MODEL:
            self.truth |= made
            self.by_name[name] = set(made)

    async def take(self, *names: str) -> None:
        assert await self.shelf.catalog.detach(self.stored.id, names) == len(names)
        for name in names:
            await self._forget(name)

    async def _forget(self, name: str) -> None:
        for id_ in self.by_name.pop(name, ()):
            del self.truth[id_]

    def vectors(self, count: int) -> Matrix:
        vectors = self._random.standard_normal((count, DIMENSIONS))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def files(self) -> IndexFiles:
        return IndexFiles(self.folder, self.stored.public_id)

    async def view(self, model: str = MODEL) -> View:
        """As a process that has just started has it; `documents.read` begins anew."""
        self.documents.read.clear()
        view = View(self.stored.id, self.documents, self.files())
        await view.sync(model)
        return view

    def check(self, view: View, within: Collection[str] | None = None) -> None:
        """It finds what comparing with everything finds."""
        allowed = self.truth.keys() if within is None else set[int]().union(*(self.by_name[name] for name in within))
        documents = None if within is None else view.allowed({"type": "in", "key": "topic", "value": list(within)})
        for query in self.vectors(8):
            best = {id_: float((self.truth[id_] @ query).max()) for id_ in allowed}
            for k in (1, 5, 1000):
                found = view.nearest(query, k, within=documents)
                assert len(found) == len(dict(found)) == min(k, len(best))
                assert [score for _, score in found] == pytest.approx(sorted(best.values(), reverse=True)[:k], abs=NEAR)
                assert dict(found) == pytest.approx({id_: best[id_] for id_, _ in found}, abs=NEAR)
            assert view.similarity(query, [*allowed, 10**9]) == pytest.approx(best, abs=NEAR)


@pytest.fixture
async def room(database: AsyncEngine, tmp_path: Path) -> AsyncIterator[Room]:
    shelf = Shelf(database, tmp_path)
    stored, other = await shelf.store("docs"), await shelf.store("other")
    room = Room(database, shelf, stored, tmp_path / "indexes")
    await shelf.place(other, "a.md", {"of somebody else": room.vectors(1)}, embedding=MODEL)
    yield room
    await shelf.aclose()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From twenty vectors on, there is a graph."""
    monkeypatch.setattr(view_module, "EXACT_UPTO", 20)


@pytest.fixture
async def kept(room: Room, small: None) -> Room:
    """With a graph that is saved."""
    for number in range(6):
        await room.put(f"{number}.md", 6, parts=1 + number % 2, topic=f"{number}.md")
    assert await (await room.view()).save()
    return room


# -- in step with the database


async def test_an_empty_collection_finds_nothing(room: Room) -> None:
    view = await room.view()
    assert (len(view), view.documents, view.elsewhere, view.dimensions) == (0, 0, 0, 0)
    assert view.nearest(room.vectors(1)[0], 5) == []
    assert view.similarity(room.vectors(1)[0], [1, 2]) == {}
    assert view.allowed({"type": "ne", "key": "a", "value": 1}) == frozenset()
    assert not await view.save()


async def test_what_is_put_replaced_and_detached_is_taken_over(room: Room) -> None:
    view = await room.view()
    await room.put("a.md", 3)
    room_is_empty = view.nearest(room.vectors(1)[0], 5)
    assert room_is_empty == [], "not before it is in step"
    for change in (
        lambda: room.put("b.md", 4),
        lambda: room.put("a.md", 2),
        lambda: room.take("b.md"),
        lambda: room.put("b.md", 1),
        lambda: room.take("a.md", "b.md"),
    ):
        await change()
        await view.sync(MODEL)
        room.check(view)
        assert view.documents == len(room.by_name)
        assert len(view) == len(room.truth)


async def test_only_what_is_new_is_read(room: Room) -> None:
    await room.put("a.md")
    view = await room.view()
    room.documents.read.clear()
    await room.put("b.md")
    await view.sync(MODEL)
    await view.sync(MODEL)
    assert len(room.documents.read) == 1


async def test_more_documents_than_are_read_at_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "DOCUMENTS_AT_ONCE", 3)
    for number in range(8):
        await room.put(f"{number}.md")
    room.check(await room.view())


async def test_attributes_that_change_count_at_the_next_sync(room: Room) -> None:
    await room.put("a.md", 2, topic="a.md")
    await room.put("b.md", 2, topic="b.md")
    view = await room.view()
    room.check(view, ["a.md"])
    member = await room.shelf.catalog.member(room.stored.id, "a.md")
    assert member is not None
    await room.shelf.catalog.set_attributes(member, {"topic": "c.md"})
    await view.sync(MODEL)
    assert view.allowed({"type": "eq", "key": "topic", "value": "a.md"}) == frozenset()
    (document,) = view.allowed({"type": "eq", "key": "topic", "value": "c.md"})
    found = view.nearest(room.vectors(1)[0], 10, within=frozenset({document}))
    assert {id_ for id_, _ in found} == room.by_name["a.md"]


@pytest.mark.parametrize("size", [2, 100])
async def test_a_filter_finds_the_nearest_of_those_it_allows(room: Room, small: None, size: int) -> None:
    names = [f"{number}.md" for number in range(6)]
    for name in names:
        await room.put(name, size // 2, parts=2, topic=name)
    view = await room.view()
    for count in range(7):
        room.check(view, names[:count])
    assert view.nearest(room.vectors(1)[0], 5, within=frozenset({10**9})) == []


async def test_the_same_filter_asked_again_sees_what_has_changed(room: Room) -> None:
    await room.put("a.md", 2, topic="x")
    view = await room.view()
    room.by_name["x"] = room.by_name["a.md"]
    room.check(view, ["x"])
    await room.put("b.md", 2, topic="x")
    await view.sync(MODEL)
    room.by_name["x"] = room.by_name["a.md"] | room.by_name["b.md"]
    room.check(view, ["x"])


async def test_a_filter_that_says_nothing_is_refused(room: Room) -> None:
    with pytest.raises(FilterInvalid):
        (await room.view()).allowed({"type": "like"})


async def test_of_a_chunk_with_several_vectors_the_best_counts(room: Room) -> None:
    """Also where one chunk's vectors are all nearer than the others'."""
    one = room.vectors(1)[0]
    crowd = one + 0.01 * room.vectors(200)
    crowd = (crowd / np.linalg.norm(crowd, axis=1, keepdims=True)).astype(np.float32)
    made = await room.shelf.place(room.stored, "crowd.md", {"crowd": crowd}, embedding=MODEL)
    room.truth |= made
    await room.put("a.md", 4, parts=3)
    await room.put("b.md", 2)
    view = await room.view()
    assert len(view) == 200 + 12 + 2
    found = view.nearest(one, 4)
    assert len(dict(found)) == 4
    assert found[0][0] in made
    room.check(view)


async def test_tasks_that_bring_it_in_step_together_end_in_step(room: Room, small: None) -> None:
    view = await room.view()
    for number in range(4):
        await asyncio.gather(
            room.put(f"{number}.md", 8), *(view.sync(MODEL) for _ in range(5)), room.put(f"{number}b.md", 8)
        )
    await asyncio.gather(*(view.sync(MODEL) for _ in range(5)))
    room.check(view)
    assert len(view) == len(room.truth)


async def test_a_database_that_fails_in_between_leaves_it_able_to_catch_up(room: Room) -> None:
    for number in range(3):
        await room.put(f"{number}.md")
    view = await room.view()
    await room.take("0.md")
    await room.put("1.md", 2)
    room.documents.fails = 1
    with pytest.raises(OperationalError):
        await view.sync(MODEL)
    await view.sync(MODEL)
    room.check(view)


async def test_a_start_that_fails_is_made_up_for(room: Room) -> None:
    await room.put("a.md", 3)
    view = View(room.stored.id, room.documents, room.files())
    room.documents.fails = 1
    with pytest.raises(OperationalError):
        await view.sync(MODEL)
    await view.sync(MODEL)
    room.check(view)


async def test_a_document_without_chunks_is_no_trouble(room: Room) -> None:
    await room.put("empty.md", 0)
    await room.put("a.md", 2)
    view = await room.view()
    await view.sync(MODEL)
    room.check(view)


# -- models


async def test_vectors_of_another_model_are_not_compared(room: Room, small: None) -> None:
    await room.put("a.md", 30)
    await room.put("old.md", 30, model="other")
    view = await room.view()
    assert (view.documents, view.elsewhere, len(view)) == (2, 1, 30)
    room.check(view)
    await view.sync("other")
    assert (view.documents, view.elsewhere, len(view)) == (2, 1, 30)
    assert not {id_ for id_, _ in view.nearest(room.vectors(1)[0], 60)} & room.truth.keys()
    await view.sync("third")
    assert (view.documents, view.elsewhere, len(view)) == (2, 2, 0)
    assert view.nearest(room.vectors(1)[0], 60) == []
    await view.sync(MODEL)
    room.check(view)


async def test_a_saved_index_of_another_model_is_not_used(kept: Room) -> None:
    view = await kept.view("other")
    assert (len(view), view.documents, view.elsewhere) == (0, 6, 6)
    assert not await view.save(), "what is saved may be of use again"
    again = await kept.view()
    assert kept.documents.read == []
    kept.check(again)


# -- growth, and files


async def test_it_grows_into_a_graph_that_finds_the_same(room: Room, small: None) -> None:
    view = await room.view()
    saved = []
    for number in range(8):
        await room.put(f"{number}.md", 5, topic=f"{number}.md")
        await view.sync(MODEL)
        room.check(view)
        room.check(view, list(room.by_name)[:2])
        saved.append(await view.save())
    assert saved == [False] * 4 + [True] * 4, "only what took long to make is kept"
    for number in range(8):
        await room.take(f"{number}.md")
        await view.sync(MODEL)
        room.check(view)
    assert len(view) == 0
    await room.put("again.md", 30)
    await view.sync(MODEL)
    room.check(view)


async def test_a_saved_index_finds_the_same_and_no_vector_is_read(kept: Room) -> None:
    first = await kept.view()
    assert kept.documents.read == []
    kept.check(first)
    kept.check(first, ["1.md", "2.md"])
    second = await kept.view()
    for query in kept.vectors(10):
        assert first.nearest(query, 10) == second.nearest(query, 10)
    assert second.dimensions == DIMENSIONS


async def test_an_index_without_changes_is_not_written_again(kept: Room) -> None:
    view = await kept.view()
    assert not await view.save()
    await kept.put("1.md", 1)
    await view.sync(MODEL)
    assert await view.save()
    assert not await view.save()
    await kept.take("1.md")
    await view.sync(MODEL)
    assert await view.save()


async def test_a_saved_index_is_three_files_however_often_it_was_written(kept: Room) -> None:
    view = await kept.view()
    for _ in range(3):
        await kept.put("1.md", 2)
        await view.sync(MODEL)
        assert await view.save()
    assert len(list(kept.folder.iterdir())) == 3
    kept.files().delete()
    assert list(kept.folder.iterdir()) == []
    kept.check(await kept.view())


async def test_deleting_leaves_the_files_of_others(kept: Room) -> None:
    others = [kept.folder / "vs_other.json", kept.folder / f"{kept.stored.public_id}x.1.usearch"]
    for path in others:
        path.write_text("x")
    kept.files().delete()
    assert sorted(kept.folder.iterdir()) == sorted(others)


@pytest.mark.parametrize("in_memory", [True, False])
async def test_files_of_a_deleted_collection_are_cleared_away_whoever_deleted_it(kept: Room, in_memory: bool) -> None:
    shelf = Shelf(kept.shelf.database, kept.folder)
    other = Room(shelf.database, shelf, await shelf.store("second"), kept.folder)
    await other.put("a.md", 30)
    assert await (await other.view()).save()
    if in_memory:
        await shelf.library.view(kept.stored, shelf.embedder)
    await kept.shelf.catalog.delete(kept.stored)
    await (shelf.library.poll() if in_memory else shelf.library.tidy())
    left = list(kept.folder.iterdir())
    assert len(left) == 3
    assert {path.name.split(".")[0] for path in left} == {other.stored.public_id}
    other.check(await other.view())


async def test_a_saved_index_catches_up_with_what_has_happened_since(kept: Room) -> None:
    await kept.put("new.md", 2, topic="new.md")
    await kept.put("1.md", 3, topic="1.md")
    await kept.take("2.md", "3.md")
    view = await kept.view()
    assert len(kept.documents.read) == 2, "only what is new"
    kept.check(view)
    kept.check(view, ["new.md", "1.md"])
    assert view.documents == len(kept.by_name) == 5
    assert await view.save()
    again = await kept.view()
    assert kept.documents.read == []
    kept.check(again)


async def test_a_saved_index_of_a_collection_that_is_empty_now_finds_nothing(kept: Room) -> None:
    await kept.take(*kept.by_name)
    view = await kept.view()
    assert (len(view), view.documents) == (0, 0)
    assert view.nearest(kept.vectors(1)[0], 5) == []
    await kept.put("new.md", 2)
    await view.sync(MODEL)
    kept.check(view)


async def test_an_index_that_cannot_be_saved_goes_on_in_memory(room: Room, small: None, tmp_path: Path) -> None:
    room.folder = tmp_path / "a-file"
    room.folder.write_text("no folder")
    await room.put("a.md", 30)
    view = await room.view()
    assert not await view.save()
    room.check(view)
    room.folder.unlink()
    assert await view.save(), "it is tried again"
    room.check(await room.view())


# -- files that are not what they were


def damaged(data: bytes, kind: str) -> bytes | None:
    return {
        "gone": None,
        "empty": b"",
        "cut": data[: len(data) // 2],
        "almost": data[:-1],
        "longer": data + b"\0",
        "flipped": data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :],
        "zeros": bytes(len(data)),
        "text": b"not what it was",
    }[kind]


@pytest.mark.parametrize("suffix", ["json", "usearch", "npz"])
@pytest.mark.parametrize("kind", ["gone", "empty", "cut", "almost", "longer", "flipped", "zeros", "text"])
async def test_damaged_files_are_made_anew(kept: Room, suffix: str, kind: str) -> None:
    (path,) = kept.folder.glob(f"*.{suffix}")
    data = damaged(path.read_bytes(), kind)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    view = await kept.view()
    kept.check(view)
    assert len(view) == sum(map(len, kept.truth.values()))
    assert await view.save() == (len(kept.documents.read) > 0), "what was made anew is kept anew"
    again = await kept.view()
    assert kept.documents.read == []
    kept.check(again)
    assert len(list(kept.folder.iterdir())) == 3


async def test_files_in_each_others_place_are_made_anew(kept: Room) -> None:
    (graph,), (owners,) = kept.folder.glob("*.usearch"), kept.folder.glob("*.npz")
    one, other = graph.read_bytes(), owners.read_bytes()
    graph.write_bytes(other)
    owners.write_bytes(one)
    kept.check(await kept.view())
    assert kept.documents.read


async def test_files_of_another_collection_are_made_anew(kept: Room, tmp_path: Path) -> None:
    """Files copied over by hand, manifest aside."""
    index = UsearchIndex()
    index.add(keys_of([1, 2], [0, 0]), kept.vectors(2))
    other = IndexFiles(tmp_path / "other", kept.stored.public_id)
    other.save(index, {1: keys_of([1, 2], [0, 0])}, {1: 1}, embedding=MODEL, dimensions=DIMENSIONS)
    for path in (tmp_path / "other").iterdir():
        if path.suffix != ".json":
            shutil.copy(path, kept.folder / path.name)
    kept.check(await kept.view())


async def test_an_index_of_other_dimensions_is_made_anew(kept: Room) -> None:
    manifest = kept.folder / f"{kept.stored.public_id}.json"
    about = json.loads(manifest.read_text())
    for dimensions in (DIMENSIONS - 1, DIMENSIONS + 1, 0, -1, 10**9, "16", None):
        manifest.write_text(json.dumps(about | {"dimensions": dimensions}))
        kept.check(await kept.view())


async def test_a_manifest_of_another_format_is_made_anew(kept: Room) -> None:
    manifest = kept.folder / f"{kept.stored.public_id}.json"
    about = json.loads(manifest.read_text())
    for other in ({"format": 0}, {"format": 99}, {"count": 1}, {"files": {}}, {"embedding": "n"}):
        manifest.write_text(json.dumps(about | other))
        kept.check(await kept.view())
        assert kept.documents.read


@pytest.mark.parametrize("leaves", ["part of a graph", "a graph", "graph and keys", "part of a manifest"])
async def test_a_crash_while_it_was_saved_costs_nothing(kept: Room, leaves: str) -> None:
    name, folder = kept.stored.public_id, kept.folder
    written = {
        "part of a graph": [(f"{name}.2.usearch.tmp", b"usear")],
        "a graph": [(f"{name}.2.usearch", b"of a newer state")],
        "graph and keys": [(f"{name}.2.usearch", b"of a newer state"), (f"{name}.2.npz", b"too")],
        "part of a manifest": [(f"{name}.2.usearch", b"x"), (f"{name}.2.npz", b"x"), (f"{name}.json.tmp", b"{")],
    }[leaves]
    for file, data in written:
        (folder / file).write_bytes(data)
    view = await kept.view()
    assert kept.documents.read == [], "the older one is whole"
    kept.check(view)
    await kept.put("new.md", 2)
    await view.sync(MODEL)
    assert await view.save()
    assert len(list(folder.iterdir())) == 3, "and what was left is cleared away"
    kept.check(await kept.view())
    assert kept.documents.read == []


async def test_a_first_save_that_crashed_is_as_none(kept: Room) -> None:
    (kept.folder / f"{kept.stored.public_id}.json").unlink()
    view = await kept.view()
    assert len(kept.documents.read) == 6
    kept.check(view)
    assert await view.save()
    assert len(list(kept.folder.iterdir())) == 3


# -- the files by themselves: every kind of damage at every place


@pytest.fixture
def filed(tmp_path: Path) -> tuple[IndexFiles, Path]:
    vectors = np.random.default_rng(1).standard_normal((40, DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, own = (
        UsearchIndex(),
        {number: keys_of(range(number * 10, number * 10 + 10), [0] * 10) for number in range(4)},
    )
    index.add(np.concatenate(list(own.values())), vectors.astype(np.float32))
    files = IndexFiles(tmp_path / "indexes", "vs_a")
    files.save(index, own, dict.fromkeys(own, 7), embedding=MODEL, dimensions=DIMENSIONS)
    return files, tmp_path / "indexes"


def told(saved: Saved | None) -> tuple[Mapping[int, list[int]], list[bytes]] | None:
    if saved is None:
        return None
    own = {document: keys.tolist() for document, keys in saved.keys.items()}
    return own, [saved.index.get(keys)[1].tobytes() for keys in saved.keys.values()]


def test_what_is_saved_is_loaded(filed: tuple[IndexFiles, Path]) -> None:
    loaded = told(filed[0].load(embedding=MODEL))
    assert loaded is not None
    assert loaded[0] == {number: [key << 8 for key in range(number * 10, number * 10 + 10)] for number in range(4)}
    assert filed[0].load(embedding="other") is None


@pytest.mark.parametrize("suffix", ["json", "usearch", "npz"])
def test_a_file_that_ends_too_early_is_never_loaded_as_something_else(
    filed: tuple[IndexFiles, Path], suffix: str
) -> None:
    files, folder = filed
    (path,) = folder.glob(f"*.{suffix}")
    data, whole = path.read_bytes(), told(files.load(embedding=MODEL))
    for length in range(0, len(data), 1 if suffix == "json" else 37):
        path.write_bytes(data[:length])
        assert told(files.load(embedding=MODEL)) is None, length
    path.write_bytes(data)
    assert told(files.load(embedding=MODEL)) == whole


@pytest.mark.parametrize("suffix", ["json", "usearch", "npz"])
def test_a_flipped_bit_is_never_loaded_as_something_else(filed: tuple[IndexFiles, Path], suffix: str) -> None:
    files, folder = filed
    (path,) = folder.glob(f"*.{suffix}")
    data, whole = path.read_bytes(), told(files.load(embedding=MODEL))
    places = range(0, len(data), 1 if suffix == "json" else 41)
    for place, bit in itertools.product(places, range(0, 8, 1 if suffix == "json" else 3)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        assert told(files.load(embedding=MODEL)) in (None, whole), (place, bit)


Change = Callable[[str], str]


@pytest.mark.parametrize("content", ["null", "5", '"format"', "[]", "{}", '[{"format": 1}]', "\N{SNOWMAN}", "[" * 500])
def test_a_manifest_that_says_something_else_is_none(filed: tuple[IndexFiles, Path], content: str) -> None:
    files, folder = filed
    (folder / "vs_a.json").write_text(content)
    assert files.load(embedding=MODEL) is None


def test_a_name_in_use_is_never_written_again(filed: tuple[IndexFiles, Path]) -> None:
    files, folder = filed
    loaded = files.load(embedding=MODEL)
    assert loaded is not None
    before = {path.name for path in folder.iterdir()}
    files.save(loaded.index, loaded.keys, loaded.prints, embedding=MODEL, dimensions=DIMENSIONS)
    after = {path.name for path in folder.iterdir()}
    assert before & after == {"vs_a.json"}
    assert told(files.load(embedding=MODEL)) == told(loaded)


def test_a_save_that_fails_leaves_what_was_there(filed: tuple[IndexFiles, Path]) -> None:
    files, folder = filed
    loaded = files.load(embedding=MODEL)
    assert loaded is not None
    (folder / "vs_a.2.npz.tmp").mkdir()
    with pytest.raises(OSError):
        files.save(loaded.index, loaded.keys, loaded.prints, embedding="newer", dimensions=DIMENSIONS)
    assert told(files.load(embedding=MODEL)) == told(loaded)
