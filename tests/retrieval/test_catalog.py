import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.catalog import Catalog, Chunk, DocumentRow, Known, NewChunk
from retrieval.lexical import LexicalIndex

pytestmark = pytest.mark.anyio


@pytest.fixture
def catalog(database: AsyncEngine) -> Catalog:
    return Catalog(database)


def document(path: str = "a.md", collection: str = "docs", fingerprint: str = "f1") -> DocumentRow:
    return DocumentRow(
        collection=collection, path=path, fingerprint=fingerprint, embedding="e", title="Title", created_at=1
    )


def pieces(*texts: str) -> list[NewChunk]:
    return [NewChunk("Title > Part", text, len(text.split())) for text in texts]


def vectors(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


async def test_what_is_put_is_found_again(catalog: Catalog) -> None:
    made = vectors(2)
    ids, gone = await catalog.put(document(), pieces("first words", "second"), made, replaces=None)
    assert gone == []
    known = await catalog.known("docs")
    assert known == {"a.md": Known(known["a.md"].document_id, "f1")}
    assert await catalog.counts("docs") == (1, 2)
    assert await catalog.chunks("docs", [*ids, 999]) == {
        ids[0]: Chunk(ids[0], "a.md", "Title", "Title > Part", "first words", 2),
        ids[1]: Chunk(ids[1], "a.md", "Title", "Title > Part", "second", 1),
    }
    stored_ids, stored = await catalog.vectors("docs", embedding="e")
    assert stored_ids == ids
    assert stored.tobytes() == made.tobytes()


async def test_a_chunk_names_its_source_with_the_heading_where_it_has_one() -> None:
    assert Chunk(1, "a.md", "", "Quotas", "", 1).source == "a.md — Quotas"
    assert Chunk(1, "a.md", "", "", "", 1).source == "a.md"


async def test_a_replaced_document_leaves_nothing_of_the_old_one(catalog: Catalog, database: AsyncEngine) -> None:
    old, _ = await catalog.put(document(), pieces("llamas graze", "condors fly"), vectors(2), replaces=None)
    known = (await catalog.known("docs"))["a.md"].document_id
    new, gone = await catalog.put(document(fingerprint="f2"), pieces("vicuñas"), vectors(1, 2), replaces=known)
    assert gone == old
    assert (await catalog.known("docs"))["a.md"].fingerprint == "f2"
    assert await catalog.counts("docs") == (1, 1)
    assert [one.text for one in (await catalog.chunks("docs", [*old, *new])).values()] == ["vicuñas"]
    lexical = LexicalIndex(database)
    assert await lexical.search("docs", "llamas condors", 5) == []
    assert await lexical.search("docs", "vicuñas", 5) == new


@pytest.mark.parametrize("broken", ["too few vectors", "a path that is taken"])
async def test_a_replacement_that_fails_leaves_the_old_document_whole(
    catalog: Catalog, database: AsyncEngine, broken: str
) -> None:
    old, _ = await catalog.put(document(), pieces("llamas graze", "condors fly"), vectors(2), replaces=None)
    await catalog.put(document("b.md"), pieces("other"), vectors(1), replaces=None)
    before = await catalog.known("docs"), await catalog.counts("docs"), await catalog.chunks("docs", old)
    path, count = ("a.md", 1) if broken == "too few vectors" else ("b.md", 2)
    with pytest.raises((ValueError, IntegrityError)):
        await catalog.put(
            document(path, fingerprint="f2"),
            pieces("new", "newer"),
            vectors(count),
            replaces=before[0]["a.md"].document_id,
        )
    assert (await catalog.known("docs"), await catalog.counts("docs"), await catalog.chunks("docs", old)) == before
    assert await LexicalIndex(database).search("docs", "llamas", 5) == old[:1]


async def test_removing_takes_the_named_documents_with_their_chunks(catalog: Catalog, database: AsyncEngine) -> None:
    first, _ = await catalog.put(document("a.md"), pieces("llamas", "condors"), vectors(2), replaces=None)
    second, _ = await catalog.put(document("b.md"), pieces("llamas"), vectors(1), replaces=None)
    known = await catalog.known("docs")
    assert await catalog.remove([known["a.md"].document_id, 4711]) == first
    assert set(await catalog.known("docs")) == {"b.md"}
    assert await LexicalIndex(database).search("docs", "llamas", 5) == second
    assert await catalog.remove([]) == []


async def test_collections_do_not_see_each_other(catalog: Catalog) -> None:
    for collection in ("docs", "other"):
        await catalog.put(document(collection=collection), pieces("one"), vectors(1), replaces=None)
    await catalog.put(document("b.md", "other"), pieces("two", "three"), vectors(2), replaces=None)
    assert (await catalog.counts("docs"), await catalog.counts("other")) == ((1, 1), (2, 3))
    assert (set(await catalog.known("docs")), len((await catalog.vectors("other", embedding="e"))[0])) == ({"a.md"}, 3)


async def test_a_collection_that_does_not_exist_is_empty(catalog: Catalog) -> None:
    ids, stored = await catalog.vectors("nowhere", embedding="e")
    assert (ids, stored.shape, stored.dtype) == ([], (0, 0), np.float32)
    assert (await catalog.known("nowhere"), await catalog.counts("nowhere")) == ({}, (0, 0))
    assert await catalog.chunks("docs", []) == {}


async def test_the_id_of_a_chunk_that_went_is_never_given_to_another(catalog: Catalog) -> None:
    """An index that has not heard of the removal yet would show a chunk of another collection."""
    old, _ = await catalog.put(document(), pieces("open"), vectors(1), replaces=None)
    await catalog.remove([(await catalog.known("docs"))["a.md"].document_id])
    new, _ = await catalog.put(document(collection="secret"), pieces("secret"), vectors(1), replaces=None)
    assert not set(old) & set(new)
