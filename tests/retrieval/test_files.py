"""Uploaded files."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval import files as files_module
from retrieval.catalog import Catalog, NewMember, Page
from retrieval.documents import NewChunk
from retrieval.errors import CursorUnknown, RoomExceeded
from retrieval.files import PIECE_BYTES, PIECES_AT_ONCE, UNFINISHED_S, Files, Uploaded
from retrieval.tables import file_pieces
from retrieval.tables import files as files_table
from tests.retrieval.shelf import Shelf

pytestmark = pytest.mark.anyio

SMALL = 16
"""Bytes of a piece, where not the real ones are tried."""


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.5

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(database: AsyncEngine, clock: Clock) -> Files:
    return Files(database, Catalog(database, clock=clock), clock=clock)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "PIECE_BYTES", SMALL)


async def add(files: Files, *pieces: bytes, **about: object) -> Uploaded:
    told = {"owner": "role", "key": "key", "filename": "a.md", "purpose": "assistants"} | about
    return await files.add(pieces, **told)  # type: ignore[arg-type]


async def test_files_that_arrive_at_once_do_not_pass_the_bound_together(files: Files, database: AsyncEngine) -> None:
    arriving = [add(files, b"x" * 300, filename=f"{n}.md", size_bytes=300, most_bytes=1000) for n in range(8)]
    told = await asyncio.gather(*arriving, return_exceptions=True)
    kept = [one for one in told if isinstance(one, Uploaded)]
    assert all(isinstance(one, Uploaded | RoomExceeded) for one in told)
    assert await files.used("role") == 300 * len(kept) <= 1000
    assert (await rows(database))[0] == len(kept)
    await add(files, b"x" * 1000, owner="other", size_bytes=1000, most_bytes=1000)


async def rows(database: AsyncEngine) -> tuple[int, int]:
    """Of files and of pieces, finished or not."""
    async with database.connect() as connection:
        found = [(await connection.execute(select(table.c[column]))).all() for table, column in (
            (files_table, "id"), (file_pieces, "ordinal"))]  # fmt: skip
    return len(found[0]), len(found[1])


def some(size: int) -> bytes:
    return hashlib.shake_256(str(size).encode()).digest(size)


# -- what is stored


async def test_a_file_is_stored_as_it_was_sent(files: Files) -> None:
    made = await add(files, b"one ", b"two", filename="Ñandú 日本.md", purpose="user_data", key="k", expires_after_s=60)
    assert made == Uploaded(
        made.id, "role", "k", "Ñandú 日本.md", "user_data", 7, hashlib.sha256(b"one two").hexdigest(), 1_800_000_000,
        1_800_000_060,
    )  # fmt: skip
    assert made.id.startswith("file-")
    assert await files.get(made.id) == made
    assert await files.read(made.id) == b"one two"


@pytest.mark.parametrize("size", [0, 1, SMALL - 1, SMALL, SMALL + 1, 2 * SMALL, SMALL * PIECES_AT_ONCE - 1,
                                  SMALL * PIECES_AT_ONCE, SMALL * PIECES_AT_ONCE + 1, 5 * SMALL * PIECES_AT_ONCE + 7])  # fmt: skip
@pytest.mark.parametrize("sent", [1, 5, SMALL, SMALL + 1, 1000])
async def test_every_byte_is_there_however_it_was_sent(files: Files, small: None, size: int, sent: int) -> None:
    data = some(size)
    made = await add(files, *(data[start : start + sent] for start in range(0, size, sent)))
    assert (made.bytes, made.digest) == (size, hashlib.sha256(data).hexdigest())
    pieces = [piece async for piece in files.pieces(made.id)]
    assert b"".join(pieces) == data
    assert all(len(piece) == SMALL for piece in pieces[:-1])
    assert len(pieces) == -(-size // SMALL)


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, (PIECES_AT_ONCE + 1) * PIECE_BYTES])
async def test_pieces_are_of_the_size_that_a_transaction_takes(files: Files, size: int) -> None:
    data = some(size)
    made = await add(files, data[:100], data[100:])
    pieces = [piece async for piece in files.pieces(made.id)]
    assert [len(piece) for piece in pieces[:-1]] == [PIECE_BYTES] * (len(pieces) - 1)
    assert b"".join(pieces) == data


async def test_empty_parts_of_a_file_are_nothing(files: Files, small: None) -> None:
    made = await add(files, b"", b"a", b"", b"b" * SMALL, b"")
    assert await files.read(made.id) == b"a" + b"b" * SMALL
    assert await files.read((await add(files)).id) == b""


@pytest.mark.parametrize("id_", ["", "file-", "file-nobody", "'; --", "%"])
async def test_a_file_that_is_not_there_is_none(files: Files, database: AsyncEngine, id_: str) -> None:
    await add(files, b"x")
    assert await files.get(id_) is None
    assert await files.read(id_) == b""
    await files.delete(id_)
    assert await rows(database) == (1, 1)


# -- uploads that do not end


class ClientLeft(BaseException):
    pass


@pytest.mark.parametrize("failure", [ValueError, ClientLeft, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1, SMALL, SMALL * PIECES_AT_ONCE, 3 * SMALL * PIECES_AT_ONCE + 1])
async def test_a_producer_that_fails_half_way_leaves_nothing(
    files: Files, database: AsyncEngine, small: None, failure: type[BaseException], after: int
) -> None:
    def broken() -> Iterator[bytes]:
        for byte in some(after):
            yield bytes([byte])
        raise failure

    kept = await add(files, b"another")
    with pytest.raises(failure):
        await files.add(broken(), owner="role", key="key", filename="a.md", purpose="assistants")
    assert await rows(database) == (1, 1)
    assert await files.listed(Page(), owner=None) == [kept]


async def test_a_file_is_there_when_all_of_it_is_there_and_not_before(
    files: Files, database: AsyncEngine, small: None, clock: Clock
) -> None:
    await unfinished(database)
    assert await files.get("file-half") is None
    assert await files.listed(Page(), owner=None) == []
    assert await files.used("role") == 0
    assert await files.sweep() == []
    clock.now_s += UNFINISHED_S
    assert await files.sweep() == []
    clock.now_s += 1
    assert await files.sweep() == ["file-half"]
    assert await rows(database) == (0, 0)


async def unfinished(database: AsyncEngine) -> None:
    """As a gateway leaves an upload that it was killed in."""
    about = {
        "id": "file-half", "owner": "role", "key": "k", "filename": "a", "purpose": "p", "bytes": 0, "digest": "",
        "created_at": 1_800_000_000,
    }  # fmt: skip
    async with database.begin() as connection:
        await connection.execute(files_table.insert().values(about))
        await connection.execute(file_pieces.insert().values(file_id="file-half", ordinal=0, data=b"x"))


# -- expiry


async def test_a_file_expires(files: Files, database: AsyncEngine, clock: Clock) -> None:
    made, stays = await add(files, b"x", expires_after_s=100), await add(files, b"y")
    clock.now_s += 99
    assert await files.get(made.id) == made
    assert len(await files.listed(Page(), owner="role")) == 2
    assert await files.sweep() == []
    clock.now_s += 1
    assert await files.get(made.id) is None
    assert await files.listed(Page(), owner="role") == [stays]
    assert await files.sweep() == [made.id]
    assert await files.sweep() == []
    assert await rows(database) == (1, 1)
    assert await files.read(stays.id) == b"y"


async def test_a_file_that_expires_leaves_the_collections_too(
    database: AsyncEngine, files: Files, clock: Clock, tmp_path: Path
) -> None:
    shelf = Shelf(database, tmp_path)
    stored = await shelf.store()
    made = await add(files, b"llama", expires_after_s=100)
    await shelf.put(stored, made.id, [NewChunk("", "llama", 1)])
    clock.now_s += 100
    assert await files.sweep() == [made.id]
    assert await shelf.catalog.all_members(stored.id) == []
    assert await shelf.lexical.search(stored.id, "llama", 5) == []


# -- lists


@pytest.mark.parametrize("ascending", [True, False])
async def test_pages_are_what_lies_between_their_cursors(files: Files, clock: Clock, ascending: bool) -> None:
    """By age, and of one age by id; for every pair of cursors and every limit."""
    made = []
    for number in range(6):
        clock.now_s += number % 2
        made.append(await add(files, b"x"))
    order = [one.id for one in sorted(made, key=lambda one: (one.created_at, one.id), reverse=not ascending)]

    async def asked(page: Page) -> Sequence[str]:
        return [one.id for one in await files.listed(page, owner="role")]

    for after, before in product((None, *order), repeat=2):
        first = 0 if after is None else order.index(after) + 1
        last = len(order) if before is None else order.index(before)
        for limit in (1, 3, 100):
            page = Page(limit, after, before, ascending)
            assert await asked(page) == order[first : max(first, last)][: limit + 1], page
    for cursor in ({"after": "nobody"}, {"before": "nobody"}):
        with pytest.raises(CursorUnknown):
            await asked(Page(**cursor, ascending=ascending))
    await files.delete(order[2])
    with pytest.raises(CursorUnknown):
        await asked(Page(after=order[2], ascending=ascending))
    assert await asked(Page(after=order[1], ascending=ascending)) == order[3:]


async def test_pages_walk_through_everything_once(files: Files, clock: Clock) -> None:
    made = {(await add(files, b"x")).id for _ in range(11)}
    seen: list[str] = []
    while page := await files.listed(Page(3, after=seen[-1] if seen else None), owner="role"):
        seen += [one.id for one in page[:3]]
    assert len(seen) == 11
    assert set(seen) == made


async def test_files_are_listed_by_owner_and_purpose(files: Files) -> None:
    made = {
        (owner, purpose): (await add(files, b"x", owner=owner, purpose=purpose)).id
        for owner, purpose in product(("one", "two"), ("assistants", "user_data"))
    }

    async def listed(**which: str | None) -> set[str]:
        return {one.id for one in await files.listed(Page(), **({"owner": None} | which))}

    assert await listed() == set(made.values())
    assert await listed(owner="one") == {made["one", "assistants"], made["one", "user_data"]}
    assert await listed(purpose="user_data") == {made["one", "user_data"], made["two", "user_data"]}
    assert await listed(owner="two", purpose="assistants") == {made["two", "assistants"]}
    assert await listed(owner="nobody") == await listed(purpose="vision") == set()


async def test_what_a_role_has_used_is_what_its_files_weigh(files: Files) -> None:
    one, other = await add(files, b"12345"), await add(files, b"123")
    await add(files, b"1" * 1000, owner="other")
    assert await files.used("role") == 8
    await files.delete(one.id)
    assert await files.used("role") == 3
    await files.delete(other.id)
    assert [await files.used("role"), await files.used("nobody")] == [0, 0]


# -- deletion


async def test_a_deleted_file_leaves_all_collections(database: AsyncEngine, files: Files, tmp_path: Path) -> None:
    shelf = Shelf(database, tmp_path)
    stores = [await shelf.store(name) for name in ("one", "two")]
    gone, stays = await add(files, b"llama"), await add(files, b"condor")
    for stored in stores:
        await shelf.put(stored, gone.id, [NewChunk("", "llama", 1)])
        await shelf.put(stored, stays.id, [NewChunk("", "condor", 1)])
    third = await shelf.store("three")
    await shelf.catalog.attach(third.id, [NewMember(gone.id, "file", "a", {}, {})])
    await files.delete(gone.id)
    assert await files.get(gone.id) is None
    assert await files.read(gone.id) == b""
    assert [len(await shelf.catalog.all_members(stored.id)) for stored in (*stores, third)] == [1, 1, 0]
    for stored in stores:
        shelf.lexical.forget(stored.id)
        assert await shelf.lexical.search(stored.id, "llama", 5) == []
        assert len(await shelf.lexical.search(stored.id, "condor", 5)) == 1
    assert await shelf.orphans() == {"documents": 0, "chunks": 0}
    assert await rows(database) == (1, 1)
    await files.delete(gone.id)


async def test_a_file_stays_when_its_collection_goes(database: AsyncEngine, files: Files, tmp_path: Path) -> None:
    shelf = Shelf(database, tmp_path)
    stored, made = await shelf.store(), await add(files, b"llama")
    await shelf.put(stored, made.id, [NewChunk("", "llama", 1)])
    await shelf.catalog.delete(stored)
    assert await files.read(made.id) == b"llama"
