"""Uploaded files, in pieces in the database: what is stored in one place is deleted in one, on any number of hosts."""

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.catalog import Catalog, Page
from retrieval.errors import CursorUnknown, RoomExceeded
from retrieval.tables import file_pieces, files

PIECE_BYTES = 1024 * 1024
PIECES_AT_ONCE = 8
"""In one transaction: nobody else writes to SQLite meanwhile."""

UNFINISHED_S = 3600
"""An upload that is not complete after so long will never be."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    id: str
    owner: str
    key: str
    filename: str
    purpose: str
    bytes: int
    digest: str
    created_at: int
    expires_at: int | None


_FILE = [files.c[name] for name in Uploaded.__dataclass_fields__]


class Files:
    """
    Args:
        clock: Unix seconds.
    """

    def __init__(self, database: AsyncEngine, catalog: Catalog, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._catalog = catalog
        self._clock = clock

    async def add(
        self,
        pieces: Iterable[bytes],
        *,
        owner: str,
        key: str,
        filename: str,
        purpose: str,
        expires_after_s: int | None = None,
        size_bytes: int = 0,
        most_bytes: int | None = None,
    ) -> Uploaded:
        """It is there when all of it is there, and not before.

        Args:
            size_bytes: of all pieces. They count from the beginning: what arrives at the same time cannot pass `most_bytes` together.
            most_bytes: of all files of this owner; None: any number.

        Raises:
            RoomExceeded
        """
        now, id_ = int(self._clock()), f"file-{secrets.token_hex(12)}"
        values = {
            "id": id_, "owner": owner, "key": key, "filename": filename, "purpose": purpose, "bytes": size_bytes,
            "digest": "",
            "created_at": now, "expires_at": None if expires_after_s is None else now + expires_after_s,
        }  # fmt: skip
        async with self._database.begin() as connection:
            await connection.execute(insert(files).values(values))
        size, digest = 0, hashlib.sha256()
        try:
            if most_bytes is not None and await self.used(owner) > most_bytes:
                raise RoomExceeded(f"the files of '{owner}' would be more than {most_bytes} bytes")
            for ordinal, some in _grouped(pieces):
                rows = [{"file_id": id_, "ordinal": ordinal + n, "data": data} for n, data in enumerate(some)]
                async with self._database.begin() as connection:
                    await connection.execute(insert(file_pieces), rows)
                size += sum(map(len, some))
                for data in some:
                    digest.update(data)
            done = {"bytes": size, "digest": digest.hexdigest()}
            async with self._database.begin() as connection:
                await connection.execute(update(files).where(files.c.id == id_).values(done))
        except BaseException:
            await self._remove(id_)
            raise
        return Uploaded(**(values | done))  # type: ignore[arg-type]

    async def get(self, id_: str) -> Uploaded | None:
        query = select(*_FILE).where(files.c.id == id_, files.c.digest != "")
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        return Uploaded(*row) if row is not None and not self._expired(row.expires_at) else None

    async def listed(
        self, page: Page, *, owner: str | None, key: str | None = None, purpose: str | None = None
    ) -> list[Uploaded]:
        """One more than `page.limit` where there are more, by age.

        Args:
            owner: None: those of all roles.
            key: that uploaded them; None: any.
        """
        now = int(self._clock())
        query = select(*_FILE).where(files.c.digest != "", files.c.expires_at.is_(None) | (files.c.expires_at > now))
        if owner is not None:
            query = query.where(files.c.owner == owner)
        if key is not None:
            query = query.where(files.c.key == key)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        for cursor, forward in ((page.after, True), (page.before, False)):
            if cursor is not None:
                await self._check(cursor, "after" if forward else "before")
                at = select(files.c.created_at).where(files.c.id == cursor).scalar_subquery()
                same = files.c.created_at == at
                if page.ascending == forward:
                    query = query.where((files.c.created_at > at) | (same & (files.c.id > cursor)))
                else:
                    query = query.where((files.c.created_at < at) | (same & (files.c.id < cursor)))
        order = [files.c.created_at, files.c.id]
        query = query.order_by(*(order if page.ascending else [one.desc() for one in order])).limit(page.limit + 1)
        async with self._database.connect() as connection:
            return [Uploaded(*row) for row in await connection.execute(query)]

    async def _check(self, cursor: str, param: str) -> None:
        async with self._database.connect() as connection:
            if (await connection.execute(select(files.c.id).where(files.c.id == cursor))).first() is None:
                raise CursorUnknown(cursor, param=param)

    async def pieces(self, id_: str) -> AsyncIterator[bytes]:
        ordinal = 0
        while True:
            query = select(file_pieces.c.data).where(file_pieces.c.file_id == id_, file_pieces.c.ordinal == ordinal)
            async with self._database.connect() as connection:
                data = (await connection.execute(query)).scalar_one_or_none()
            if data is None:
                return
            yield bytes(data)
            ordinal += 1

    async def read(self, id_: str) -> bytes:
        return b"".join([piece async for piece in self.pieces(id_)])

    async def delete(self, id_: str) -> None:
        """From all collections, too. Nobody attaches it any more, before they are looked for."""
        async with self._database.begin() as connection:
            await connection.execute(update(files).where(files.c.id == id_).values(digest=""))
        await self._catalog.detach_everywhere(id_)
        await self._remove(id_)

    async def used(self, owner: str) -> int:
        """Bytes of a role's files, and of those that are arriving."""
        async with self._database.connect() as connection:
            query = select(func.sum(files.c.bytes)).where(files.c.owner == owner)
            return int((await connection.execute(query)).scalar_one() or 0)

    async def sweep(self) -> Sequence[str]:
        """Delete what has expired or was never finished; its ids."""
        now = int(self._clock())
        unfinished = (files.c.digest == "") & (files.c.created_at < now - UNFINISHED_S)
        query = select(files.c.id).where(unfinished | (files.c.expires_at <= now))
        async with self._database.connect() as connection:
            gone = (await connection.execute(query)).scalars().all()
        for id_ in gone:
            await self.delete(id_)
        return gone

    async def _remove(self, id_: str) -> None:
        async with self._database.begin() as connection:
            await connection.execute(delete(file_pieces).where(file_pieces.c.file_id == id_))
            await connection.execute(delete(files).where(files.c.id == id_))

    def _expired(self, expires_at: int | None) -> bool:
        return expires_at is not None and expires_at <= self._clock()


def _grouped(pieces: Iterable[bytes]) -> "Iterable[tuple[int, list[bytes]]]":
    """(ordinal of the first, pieces of `PIECE_BYTES`), so many that one transaction takes them."""
    ordinal, waiting, group = 0, bytearray(), []
    for piece in pieces:
        waiting += piece
        while len(waiting) >= PIECE_BYTES:
            group.append(bytes(waiting[:PIECE_BYTES]))
            del waiting[:PIECE_BYTES]
            if len(group) == PIECES_AT_ONCE:
                yield ordinal, group
                ordinal, group = ordinal + len(group), []
    if waiting:
        group.append(bytes(waiting))
    if group:
        yield ordinal, group
