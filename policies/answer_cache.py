"""Exact answers to exact questions, for one key: off unless switched on. Which may be kept, under what name, and where they lie.

A cache: whatever is wrong with it, the question is asked again. Answers lie in the cache's database, which may be deleted at any time.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.settings import Settings
from backends.wire import Body

log = logging.getLogger("chasqui")

TABLES = MetaData()

answers = Table(
    "cached_answers_1",
    TABLES,
    Column("key", LargeBinary, primary_key=True),
    Column("answer", LargeBinary, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("made_at", BigInteger, nullable=False),
)
Index("ix_cached_answers_1_made", answers.c.made_at, answers.c.bytes)

NOT_PART_OF_THE_QUESTION = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key")
"""Fields that change nothing of an answer."""

UNFINISHED = (b'"content_filter"',)
EVICT_AT_ONCE = 500


class AnswerCacheSettings(Settings):
    """Answers that are kept, for the key that got them: those of temperature 0, and those that a client asks to be kept."""

    enabled: bool = False
    max_mb: Annotated[int, Field(ge=1)] = 64
    """In the database; the oldest go first."""
    max_age_s: Annotated[int, Field(ge=1, le=3_153_600_000)] = 86_400
    max_answer_kb: Annotated[int, Field(ge=1, le=65_536)] = 1024
    """Larger answers are not kept."""


class Wish(NamedTuple):
    """What a client says of it, by headers."""

    asked_for: bool = False
    """`x-chasqui-answer-cache: on`"""
    read: bool = True
    write: bool = True
    """`cache-control: no-cache` and `no-store`."""


def may_be_kept(body: Body, wish: Wish) -> bool:
    """An answer that would be the same again, or that the client wants to be."""
    return wish.asked_for or body.read("temperature", float) == 0


def is_finished(answer: bytes) -> bool:
    return not any(mark in answer for mark in UNFINISHED)


def key_of(body: Body, parts: Iterable[str | bytes]) -> bytes:
    """Everything that matters: the question as the engine gets it, and `parts`."""
    digest = hashlib.sha256()
    for part in (*parts, body.without(*NOT_PART_OF_THE_QUESTION).raw):
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


class AnswerCache:
    def __init__(
        self, database: AsyncEngine, settings: AnswerCacheSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._opened = False
        dialect = postgresql if database.dialect.name == "postgresql" else sqlite
        self._insert: Any = dialect.insert

    @property
    def enabled(self) -> bool:
        return self._settings.enabled

    async def get(self, key: bytes) -> bytes | None:
        query = select(answers.c.answer, answers.c.checksum).where(
            answers.c.key == key, answers.c.made_at >= int(self._clock()) - self._settings.max_age_s
        )
        try:
            await self._open()
            async with self._database.connect() as connection:
                row = (await connection.execute(query)).first()
        except (SQLAlchemyError, OSError) as exc:
            log.error("the answer cache cannot be read, the question is asked again: %s", exc)
            return None
        if row is None:
            return None
        if checksum(key, row.answer) != row.checksum:
            log.error("a damaged answer in the cache was not used")
            return None
        return bytes(row.answer)

    async def put(self, key: bytes, answer: bytes) -> None:
        if len(answer) > self._settings.max_answer_kb * 1024:
            return
        row = {
            "key": key,
            "answer": answer,
            "checksum": checksum(key, answer),
            "bytes": len(answer),
            "made_at": int(self._clock()),
        }
        insertion = self._insert(answers)
        others = {name: insertion.excluded[name] for name in row if name != "key"}
        try:
            await self._open()
            async with self._database.begin() as connection:
                await connection.execute(insertion.on_conflict_do_update(index_elements=["key"], set_=others), [row])
            await self._evict()
        except (SQLAlchemyError, OSError) as exc:
            log.error("the answer cache cannot be written: %s", exc)

    async def clear(self) -> int:
        """
        Raises:
            SQLAlchemyError
        """
        await self._open()
        async with self._database.begin() as connection:
            return int((await connection.execute(delete(answers))).rowcount)

    async def size(self) -> tuple[int, int]:
        """Answers and bytes.

        Raises:
            SQLAlchemyError
        """
        await self._open()
        query = select(func.count(), func.coalesce(func.sum(answers.c.bytes), 0)).select_from(answers)
        async with self._database.connect() as connection:
            count, size = (await connection.execute(query)).one()
            return int(count), int(size)

    async def _evict(self) -> None:
        """What is too old, and then the oldest."""
        async with self._database.begin() as connection:
            await connection.execute(
                delete(answers).where(answers.c.made_at < int(self._clock()) - self._settings.max_age_s)
            )
            total = (await connection.execute(select(func.coalesce(func.sum(answers.c.bytes), 0)))).scalar_one()
            excess = int(total) - self._settings.max_mb * 2**20
            doomed: list[bytes] = []
            oldest = select(answers.c.key, answers.c.bytes).order_by(answers.c.made_at).limit(EVICT_AT_ONCE)
            for key, size in await connection.execute(oldest) if excess > 0 else ():
                if excess <= 0:
                    break
                doomed.append(key)
                excess -= size
            if doomed:
                await connection.execute(delete(answers).where(answers.c.key.in_(doomed)))

    async def _open(self) -> None:
        if self._opened:
            return
        try:
            async with self._database.begin() as connection:
                await connection.run_sync(TABLES.create_all)
        except SQLAlchemyError:
            async with self._database.begin() as connection:  # another process was faster; if not, it fails again
                await connection.run_sync(TABLES.create_all)
        self._opened = True


def checksum(key: bytes, answer: bytes) -> bytes:
    return hashlib.blake2b(key + answer, digest_size=16).digest()
