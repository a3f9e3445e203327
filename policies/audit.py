"""Who changed what: a row per administrative change, in the transaction that makes it. Never a secret."""

import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import JSON, BigInteger, Column, Table, insert, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlmodel import Field, SQLModel

from policies.errors import NotThere
from policies.ledger_sql import MICRO


class AuditRow(SQLModel, table=True):
    __tablename__ = "audit"

    id: str = Field(primary_key=True)
    at: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Unix microseconds."""
    actor: str
    """A key's id, or `cli`, `start`, `reload`."""
    action: str
    """`key.create`, `key.update`, `key.rotate`, `key.delete`, `config.reload`."""
    object: str
    """The id of what was changed."""
    request_id: str
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))


audit: Table = AuditRow.__table__  # type: ignore[attr-defined]


class Actor(NamedTuple):
    """Who makes a change, and in which request."""

    name: str
    request_id: str = ""


CLI = Actor("cli")
START = Actor("start")
RELOAD = Actor("reload")


async def record(
    connection: AsyncConnection, by: Actor, action: str, object_: str, details: Mapping[str, Any] | None = None
) -> None:
    """In the transaction that makes the change."""
    row = {
        "id": f"aud_{os.urandom(12).hex()}",
        "at": int(time.time() * MICRO),
        "actor": by.name,
        "action": action,
        "object": object_,
        "request_id": by.request_id,
        "details": dict(details or {}),
    }
    await connection.execute(insert(audit).values(row))


class Audit:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def record(self, by: Actor, action: str, object_: str, details: Mapping[str, Any] | None = None) -> None:
        """A change that no transaction makes."""
        async with self._database.begin() as connection:
            await record(connection, by, action, object_, details)

    async def list(self, *, limit: int, after: str | None = None, object_: str | None = None) -> list[AuditRow]:
        """Newest first; `after` is the id of the last one seen.

        Raises:
            NotThere: there is no `after`.
        """
        query = select(audit).order_by(audit.c.at.desc(), audit.c.id.desc()).limit(limit)
        if not (object_ or "").isprintable() or not (after or "").isprintable():
            return []
        if object_ is not None:
            query = query.where(audit.c.object == object_)
        async with self._database.connect() as connection:
            if after is not None:
                place = (await connection.execute(select(audit.c.at).where(audit.c.id == after))).scalar()
                if place is None:
                    raise NotThere("audit row", after)
                query = query.where(tuple_(audit.c.at, audit.c.id) < tuple_(literal(place), literal(after)))
            return [AuditRow(**row) for row in (await connection.execute(query)).mappings()]
