"""Stars and words for an answer, from the key that asked for it."""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from policies.errors import NotThere
from policies.ledger import feedback, requests


class Said(NamedTuple):
    stars: int
    words: str
    at: int
    """Unix microseconds."""


class Feedbacks:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def say(self, request_id: str, said: Said, *, key: str | None) -> None:
        """What was said before of the same request is replaced.

        Args:
            key: whose request it has to be; None: anybody's.

        Raises:
            NotThere: no such request, or not of this key.
        """
        if not request_id.isprintable():
            raise NotThere("request", request_id)
        async with self._database.begin() as connection:
            query = select(requests.c.key, requests.c.model).where(requests.c.id == request_id)
            request = (await connection.execute(query)).first()
            if request is None or (key is not None and request.key != key):
                raise NotThere("request", request_id)
            row = {"id": request_id, "key": request.key, "model": request.model, **said._asdict()}
            insert = postgresql.insert if self._database.dialect.name == "postgresql" else sqlite.insert
            given = insert(feedback).values(row)
            await connection.execute(given.on_conflict_do_update(index_elements=["id"], set_=said._asdict()))
