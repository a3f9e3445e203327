"""How one process learns that another changed something: a number per kind of thing, polled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy import BigInteger, Table, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel import Field, SQLModel

log = logging.getLogger("chasqui.generations")

POLL_S = 0.5


class Generation(SQLModel, table=True):
    __tablename__ = "generations"

    kind: str = Field(primary_key=True)
    number: int = Field(default=0, sa_type=BigInteger)


generations: Table = Generation.__table__  # type: ignore[attr-defined]


async def bump(connection: AsyncConnection, kind: str) -> None:
    """In the transaction that makes the change."""
    await connection.execute(
        text(
            "INSERT INTO generations (kind, number) VALUES (:kind, 1) ON CONFLICT (kind) DO UPDATE SET number = generations.number + 1"
        ),
        {"kind": kind},
    )


class Watcher:
    """Calls a kind's `reload` when its number moved, within `POLL_S` of the change.

    A database that does not answer is no reason to forget what is known: the last state stays in force, and is said so.
    """

    def __init__(self, database: AsyncEngine, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._database = database
        self._sleep = sleep
        self._reloads: dict[str, Callable[[], Awaitable[None]]] = {}
        self._seen: dict[str, int] = {}
        self._failing = False

    def on_change(self, kind: str, reload: Callable[[], Awaitable[None]]) -> None:
        self._reloads[kind] = reload

    async def run(self) -> None:
        while True:
            await self._sleep(POLL_S)
            try:
                await self.poll()
                self._failing = False
            except (SQLAlchemyError, OSError) as exc:
                if not self._failing:
                    log.error("the database does not answer, keys and roles stay as they were: %s", exc)
                self._failing = True

    async def poll(self) -> None:
        async with self._database.connect() as connection:
            rows = (await connection.execute(select(generations.c.kind, generations.c.number))).all()
        for kind, number in rows:
            if self._seen.get(kind) != number:
                if kind in self._reloads:
                    await self._reloads[kind]()
                self._seen[kind] = number  # after the reload: a failed one is tried again
