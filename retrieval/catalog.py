"""Collections and their members: what there is, and what state it is in. What can be found in them is `documents.py`."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Collection as Many
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, Table, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from retrieval import lexical
from retrieval.documents import remove_documents, remove_versions
from retrieval.errors import AlreadyDone, CursorUnknown, Gone
from retrieval.ids import declared_id
from retrieval.tables import collections, documents, file_batches, files, members

Status = Literal["in_progress", "completed", "failed", "cancelled"]
COUNTED: tuple[Status, ...] = ("in_progress", "completed", "failed", "cancelled")

DAY_S = 86_400
MAX_LEFT = 20_000
IDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Stored:
    """A collection as the database has it."""

    id: int
    public_id: str
    name: str
    owner: str
    description: str
    embed: str
    metadata: Mapping[str, Any]
    expires_days: int | None
    created_at: int
    last_active_at: int
    generation: int

    @property
    def declared(self) -> bool:
        """In the configuration, so that it is changed there and nowhere else."""
        return not self.owner

    @property
    def expires_at(self) -> int | None:
        return None if self.expires_days is None else self.last_active_at + self.expires_days * DAY_S

    def expired(self, now_s: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now_s


@dataclass(frozen=True, slots=True)
class Member:
    id: int
    collection_id: int
    public_id: str
    kind: str
    name: str
    attributes: Mapping[str, Any]
    chunking: Mapping[str, Any]
    status: Status
    error_code: str
    error_message: str
    usage_bytes: int
    created_at: int
    batch_id: str
    print: str
    document_id: int | None
    version: int
    attempts: int


@dataclass(frozen=True, slots=True)
class NewMember:
    public_id: str
    kind: Literal["file", "path", "url"]
    name: str
    attributes: Mapping[str, Any]
    chunking: Mapping[str, Any]
    print: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What a list is asked for. `after` and `before` are public ids; ones that are not there are an empty page."""

    limit: int = 20
    after: str | None = None
    before: str | None = None
    ascending: bool = False


_STORED = [collections.c[name] for name in Stored.__dataclass_fields__]
_MEMBER = [members.c[name] for name in Member.__dataclass_fields__]


class Catalog:
    """
    Args:
        clock: Unix seconds.
    """

    def __init__(self, database: AsyncEngine, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._left: OrderedDict[tuple[int, str], int] = OrderedDict()
        """By collection, where members stood that were removed lately."""

    # -- collections

    async def declare(self, name: str, embed: str) -> Stored:
        """The collection of the configuration with this name, made where it is not there yet."""
        known = await self.get(declared_id(name))
        if known is not None:
            return known
        try:
            return await self._create(declared_id(name), name, "", embed)
        except IntegrityError:  # another gateway was faster
            known = await self.get(declared_id(name))
            if known is None:
                raise
            return known

    async def create(
        self,
        *,
        name: str,
        owner: str,
        embed: str,
        description: str = "",
        metadata: Mapping[str, Any] = {},
        expires_days: int | None = None,
    ) -> Stored:
        return await self._create(
            f"vs_{secrets.token_hex(12)}", name, owner, embed, description, dict(metadata), expires_days
        )

    async def _create(
        self,
        public_id: str,
        name: str,
        owner: str,
        embed: str,
        description: str = "",
        metadata: dict[str, Any] | None = None,
        expires_days: int | None = None,
    ) -> Stored:
        now = int(self._clock())
        values = {
            "public_id": public_id, "name": name, "owner": owner, "description": description, "embed": embed,
            "metadata": metadata or {}, "expires_days": expires_days, "created_at": now, "last_active_at": now,
            "generation": 0, "claimed_by": "", "claimed_until": 0,
        }  # fmt: skip
        async with self._database.begin() as connection:
            made = insert(collections).values(values).returning(collections.c.id)
            id_ = int((await connection.execute(made)).scalar_one())
            await lexical.create_table(connection, id_)
        found = await self.get(public_id)
        assert found is not None
        return found

    async def get(self, public_id: str) -> Stored | None:
        found = await self._collections(select(*_STORED).where(collections.c.public_id == public_id))
        return found[0] if found else None

    async def by_number(self, id_: int) -> Stored | None:
        found = await self._collections(select(*_STORED).where(collections.c.id == id_))
        return found[0] if found else None

    async def listed(self, page: Page, *, owner: str | None, declared: Many[str]) -> list[Stored]:
        """One more than `page.limit` where there are more.

        Args:
            owner: only those of this role; None: those of all.
            declared: public ids of the configuration's to be shown beside them.
        """
        mine = collections.c.owner != "" if owner is None else collections.c.owner == owner
        visible = or_(mine, collections.c.public_id.in_(list(declared)))
        query = select(*_STORED).where(visible)
        return await self._collections(await self._paged(query, collections, page))

    async def update(self, stored: Stored, **values: Any) -> Stored | None:
        """name, description, metadata, expires_days."""
        values = values | {"last_active_at": int(self._clock())}
        async with self._database.begin() as connection:
            await connection.execute(update(collections).where(collections.c.id == stored.id).values(values))
        return await self.get(stored.public_id)

    async def touch(self, id_: int) -> None:
        """It has been used: its time to expire begins anew."""
        async with self._database.begin() as connection:
            now = int(self._clock())
            await connection.execute(
                update(collections)
                .where(collections.c.id == id_, collections.c.last_active_at < now)
                .values(last_active_at=now)
            )

    async def delete(self, stored: Stored) -> None:
        """With everything that is in it; the files themselves stay."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(collections).where(collections.c.id == stored.id).values(generation=collections.c.generation + 1)
            )  # first a write: a transaction that begins by reading cannot wait for another writer
            await lock_members(connection, members.c.collection_id == stored.id)
            held = select(documents.c.id).where(documents.c.collection_id == stored.id)
            await lexical.drop_table(connection, stored.id)
            await remove_documents(connection, (await connection.execute(held)).scalars().all())
            for table in (members, file_batches):
                await connection.execute(delete(table).where(table.c.collection_id == stored.id))
            await connection.execute(delete(collections).where(collections.c.id == stored.id))

    async def expired(self) -> Sequence[Stored]:
        query = select(*_STORED).where(
            collections.c.expires_days.is_not(None),
            collections.c.last_active_at + collections.c.expires_days * DAY_S <= int(self._clock()),
        )
        return await self._collections(query)

    async def generations(self) -> dict[int, int]:
        async with self._database.connect() as connection:
            rows = await connection.execute(select(collections.c.id, collections.c.generation))
            return {row.id: row.generation for row in rows}

    async def public_ids(self) -> set[str]:
        async with self._database.connect() as connection:
            return set((await connection.execute(select(collections.c.public_id))).scalars().all())

    # -- members

    async def counts(self, ids: Sequence[int]) -> dict[int, tuple[dict[str, int], int]]:
        """By collection: members by status, and the bytes of what they say."""
        query = (
            select(members.c.collection_id, members.c.status, func.count(), func.sum(members.c.usage_bytes))
            .where(members.c.collection_id.in_(list(ids)))
            .group_by(members.c.collection_id, members.c.status)
        )
        found: dict[int, tuple[dict[str, int], int]] = {id_: (dict.fromkeys(COUNTED, 0), 0) for id_ in ids}
        async with self._database.connect() as connection:
            for id_, status, count, size in await connection.execute(query):
                by_status, total = found[id_]
                found[id_] = ({**by_status, status: int(count)}, total + int(size or 0))
        return found

    async def member(self, collection: int, public_id: str) -> Member | None:
        query = select(*_MEMBER).where(members.c.collection_id == collection, members.c.public_id == public_id)
        found = await self._members(query)
        return found[0] if found else None

    async def members(
        self, collection: int, page: Page, *, status: str | None = None, batch: str | None = None
    ) -> list[Member]:
        """One more than `page.limit` where there are more."""
        query = select(*_MEMBER).where(members.c.collection_id == collection)
        if status is not None:
            query = query.where(members.c.status == status)
        if batch is not None:
            query = query.where(members.c.batch_id == batch)
        within = members.c.collection_id == collection
        return await self._members(await self._paged(query, members, page, within=within, scope=collection))

    async def all_members(self, collection: int) -> list[Member]:
        return await self._members(select(*_MEMBER).where(members.c.collection_id == collection))

    async def attach(
        self, collection: int, new: Sequence[NewMember], *, batch: str = "", uploaded: bool = False
    ) -> None:
        """They are built in the background. One that is there already is built anew, and is found as it was until then.

        Args:
            uploaded: they are files, which may be deleted at this moment.

        Raises:
            Gone: the collection, or one of the files.
        """
        now = int(self._clock())
        async with self._database.begin() as connection:
            if not await self._active(connection, collection, now):
                raise Gone("vector store")
            if uploaded:
                await _check_files(connection, [one.public_id for one in new])
            for one in new:
                again = update(members).where(
                    members.c.collection_id == collection, members.c.public_id == one.public_id
                )
                values = {
                    "kind": one.kind, "name": one.name, "attributes": dict(one.attributes),
                    "chunking": dict(one.chunking), "print": one.print, "batch_id": batch, "status": "in_progress",
                    "error_code": "", "error_message": "", "attempts": 0, "claimed_by": "", "claimed_until": 0,
                }  # fmt: skip
                changed = await connection.execute(again.values(**values, version=members.c.version + 1))
                if changed.rowcount == 0:
                    first = {"public_id": one.public_id, "collection_id": collection, "created_at": now}
                    nothing = {"usage_bytes": 0, "version": 0, "document_id": None}
                    await connection.execute(insert(members).values(values | first | nothing))

    async def set_attributes(self, member: Member, attributes: Mapping[str, Any]) -> None:
        """They count for searches at once: nothing is built anew."""
        async with self._database.begin() as connection:
            await self._active(connection, member.collection_id, int(self._clock()))
            await connection.execute(
                update(members).where(members.c.id == member.id).values(attributes=dict(attributes))
            )

    async def detach(self, collection: int, public_ids: Many[str]) -> int:
        """How many were there."""
        async with self._database.begin() as connection:
            await self._active(connection, collection, int(self._clock()))
            which = and_(members.c.collection_id == collection, members.c.public_id.in_(list(public_ids)))
            gone = await remove_members(connection, collection, which)
        self._remember(collection, gone)
        return len(gone)

    async def detach_everywhere(self, file_id: str) -> None:
        """A file is deleted: it leaves all collections."""
        holders = select(members.c.collection_id).where(members.c.public_id == file_id, members.c.kind == "file")
        async with self._database.connect() as connection:
            found = sorted(set((await connection.execute(holders)).scalars().all()))
        for collection in found:
            await self.detach(collection, [file_id])

    async def rebuild(self, collection: int) -> int:
        """All members are read anew; what can be found stays until then. How many there are."""
        async with self._database.begin() as connection:
            again = {"status": "in_progress", "error_code": "", "error_message": "", "attempts": 0, "claimed_until": 0}
            changed = await connection.execute(
                update(members)
                .where(members.c.collection_id == collection)
                .values(**again, claimed_by="", version=members.c.version + 1)
            )
            return int(changed.rowcount)

    # -- batches

    async def open_batch(self, collection: int) -> str:
        id_ = f"vsfb_{secrets.token_hex(12)}"
        async with self._database.begin() as connection:
            if not await self._active(connection, collection, int(self._clock())):
                raise Gone("vector store")
            values = {"id": id_, "collection_id": collection, "created_at": int(self._clock()), "cancelled": False}
            await connection.execute(insert(file_batches).values(values))
        return id_

    async def batch(self, collection: int, id_: str) -> tuple[int, bool, dict[str, int]] | None:
        """(created_at, cancelled, members by status)"""
        query = select(file_batches).where(file_batches.c.id == id_, file_batches.c.collection_id == collection)
        counts = (
            select(members.c.status, func.count())
            .where(members.c.collection_id == collection, members.c.batch_id == id_)
            .group_by(members.c.status)
        )
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
            if row is None:
                return None
            by_status = dict.fromkeys(COUNTED, 0) | {status: int(n) for status, n in await connection.execute(counts)}
        return row.created_at, bool(row.cancelled), by_status

    async def cancel_batch(self, collection: int, id_: str) -> None:
        """What is not done yet is not done any more.

        Raises:
            AlreadyDone: nothing is left to cancel.
        """
        async with self._database.begin() as connection:
            waiting = and_(
                members.c.collection_id == collection, members.c.batch_id == id_, members.c.status == "in_progress"
            )
            changed = await connection.execute(
                update(members).where(waiting).values(status="cancelled", version=members.c.version + 1)
            )
            if changed.rowcount == 0:
                raise AlreadyDone(f"the batch {id_} is not in progress any more")
            await connection.execute(update(file_batches).where(file_batches.c.id == id_).values(cancelled=True))

    # --

    async def _active(self, connection: AsyncConnection, collection: int, now: int) -> bool:
        """Whether it is there; it is locked until the transaction ends."""
        used = update(collections).where(collections.c.id == collection)
        done = await connection.execute(used.values(last_active_at=now, generation=collections.c.generation + 1))
        return bool(done.rowcount)

    async def _paged(
        self, query: Select[Any], table: Table, page: Page, *, within: Any = None, scope: int = 0
    ) -> Select[Any]:
        """By `id`, which grows as things are made.

        Raises:
            CursorUnknown
        """
        for param, cursor, forward in (("after", page.after, True), ("before", page.before, False)):
            if cursor is not None:
                border = await self._place(table, cursor, within, (scope, cursor), param)
                beyond = page.ascending == forward
                query = query.where(table.c.id > border if beyond else table.c.id < border)
        order = table.c.id.asc() if page.ascending else table.c.id.desc()
        return query.order_by(order).limit(page.limit + 1)

    async def _place(self, table: Table, cursor: str, within: Any, key: tuple[int, str], param: str) -> int:
        """Where something stands, or stood: who deletes what a list shows asks for the next page behind it."""
        query = select(table.c.id).where(table.c.public_id == cursor)
        async with self._database.connect() as connection:
            found = (await connection.execute(query if within is None else query.where(within))).scalars().first()
        known = self._left.get(key) if found is None else int(found)
        if known is None:
            raise CursorUnknown(cursor, param=param)
        return known

    def _remember(self, scope: int, gone: Iterable[tuple[int, str]]) -> None:
        for id_, public_id in gone:
            self._left[scope, public_id] = id_
        while len(self._left) > MAX_LEFT:
            self._left.popitem(last=False)

    async def _collections(self, query: Select[Any]) -> list[Stored]:
        async with self._database.connect() as connection:
            return [Stored(*row) for row in await connection.execute(query)]

    async def _members(self, query: Select[Any]) -> list[Member]:
        async with self._database.connect() as connection:
            return [Member(*row) for row in await connection.execute(query)]


async def remove_members(connection: AsyncConnection, collection: int, which: Any) -> list[tuple[int, str]]:
    """With their documents, in this transaction, which has locked their collection; their ids, and their public ones."""
    await lock_members(connection, which)
    await remove_versions(connection, collection, which)
    gone = await connection.execute(delete(members).where(which).returning(members.c.id, members.c.public_id))
    return [(id_, public_id) for id_, public_id in gone]


async def _check_files(connection: AsyncConnection, ids: Sequence[str]) -> None:
    """That they are there, and stay until this transaction ends: who deletes one looks for its members afterwards.

    Raises:
        Gone
    """
    there: set[str] = set()
    for start in range(0, len(ids), IDS_AT_ONCE):
        some = select(files.c.id).where(files.c.id.in_(ids[start : start + IDS_AT_ONCE]), files.c.digest != "")
        there |= set((await connection.execute(some.with_for_update(read=True))).scalars().all())
    for id_ in ids:
        if id_ not in there:
            raise Gone("file", id_)


async def lock_members(connection: AsyncConnection, which: Any) -> None:
    """Whoever writes to one of them has ended, and nobody begins before this transaction does. Their collection was locked
    before: locks are taken in one order everywhere."""
    await connection.execute(update(members).where(which).values(version=members.c.version + 1))
