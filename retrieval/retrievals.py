"""What was found for which question: kept for a while, so that a client which cannot show citations can ask for them, and so
that the next turn of a conversation knows what the one before it spoke of.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from retrieval.tables import retrievals

KEPT_S = 7 * 86_400


class Retrievals:
    """
    Args:
        clock: Unix seconds.
    """

    def __init__(self, database: AsyncEngine, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    async def keep(self, id_: str, record: dict[str, Any], *, owner: str, key: str, conversation: str) -> None:
        values = {
            "id": id_, "owner": owner, "key": key, "conversation": conversation, "record": record,
            "created_at": int(self._clock()),
        }  # fmt: skip
        async with self._database.begin() as connection:
            await connection.execute(insert(retrievals).values(values))

    async def get(self, id_: str) -> tuple[str, dict[str, Any]] | None:
        """(owner, record)"""
        query = select(retrievals.c.owner, retrievals.c.record).where(retrievals.c.id == id_)
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).one_or_none()
        return (row.owner, row.record) if row is not None else None

    async def of_conversation(self, conversation: str) -> dict[str, Any] | None:
        """The newest one with these messages."""
        query = (
            select(retrievals.c.record)
            .where(retrievals.c.conversation == conversation)
            .order_by(retrievals.c.created_at.desc())
            .limit(1)
        )
        async with self._database.connect() as connection:
            record: dict[str, Any] | None = (await connection.execute(query)).scalar_one_or_none()
        return record

    async def sweep(self) -> None:
        async with self._database.begin() as connection:
            old = int(self._clock()) - KEPT_S
            await connection.execute(delete(retrievals).where(retrievals.c.created_at < old))


def conversation_of(key: str, model: str, messages: Sequence[dict[str, Any]]) -> str:
    """The same for the same messages of the same key, and for nobody else's."""
    said = [[message.get("role"), message.get("content")] for message in messages]
    digest = hashlib.sha256(msgspec.json.encode([key, model, said]))
    return digest.hexdigest()
