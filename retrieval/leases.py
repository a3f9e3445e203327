"""Who works on what, where several gateways share a database: a claim that has to be renewed, so that it ends with its holder."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Table, Update, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.errors import Overtaken

LEASE_S = 15.0
RENEW_S = 2.0


class Leases:
    """
    Args:
        clock: Unix seconds, which the hosts agree on within a few.
    """

    def __init__(self, database: AsyncEngine, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self.holder = f"{os.getpid()}-{secrets.token_hex(6)}"

    async def claim(self, table: Table, where: Any, *, limit: int, **also: Any) -> list[int]:
        """At most `limit` rows that nobody works on, by id; they are this holder's now.

        Args:
            also: what else is set in them, in the same step.
        """
        now = self._now()
        free = select(table.c.id).where(where, table.c.claimed_until < now).order_by(table.c.id).limit(limit)
        values = {"claimed_by": self.holder, "claimed_until": now + int(LEASE_S * 1000), **also}
        async with self._database.connect() as connection:
            if not (await connection.execute(free)).first():
                return []
        async with self._database.begin() as connection:
            # locks in PostgreSQL, without waiting for those of others; SQLite has one writer at a time anyway
            found = (await connection.execute(free.with_for_update(skip_locked=True))).scalars().all()
            mine = update(table).where(table.c.id.in_(found), where, table.c.claimed_until < now)
            claimed = await connection.execute(mine.values(values).returning(table.c.id))
            return sorted(claimed.scalars().all())

    async def release(self, table: Table, id_: int, also: Any = None) -> None:
        """
        Args:
            also: what else is true of the row as long as it is the same claim, see `held`.
        """
        async with self._database.begin() as connection:
            await connection.execute(self._mine(table, id_, also).values(claimed_by="", claimed_until=0))

    def _mine(self, table: Table, id_: int, also: Any) -> Update:
        mine = update(table).where(table.c.id == id_, table.c.claimed_by == self.holder)
        return mine if also is None else mine.where(also)

    @asynccontextmanager
    async def held(self, table: Table, id_: int, also: Any = None) -> AsyncIterator[None]:
        """Renews a claim while the block runs. Where it is somebody else's meanwhile, or its row has gone, the block is ended: nobody
        wants what it makes. A database that does not answer for long costs the claim, and the next one moves what writes look at.

        Args:
            also: what else is true of the row as long as it is the same claim. Its holder may have claimed the row once more, for
                what it says by now.

        Raises:
            Overtaken: the claim was lost.
        """
        working = asyncio.current_task()
        assert working is not None
        lost = asyncio.Event()

        def end() -> None:
            lost.set()
            working.cancel()

        task = asyncio.create_task(self._renew(self._mine(table, id_, also), end))
        try:
            yield
        except asyncio.CancelledError:
            if not lost.is_set():
                raise
            working.uncancel()
            raise Overtaken(id_) from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _renew(self, mine: Update, lost: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            until = self._now() + int(LEASE_S * 1000)
            try:
                async with self._database.begin() as connection:
                    renewed = (await connection.execute(mine.values(claimed_until=until))).rowcount
            except SQLAlchemyError:
                continue
            if not renewed:
                lost()
                return

    def _now(self) -> int:
        return int(self._clock() * 1000)
