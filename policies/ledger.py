"""What was used, by whom: a row per finished request, and sums of them.

Rows arrive as lines of JSON and go into the tables with their sums in one transaction. A row whose id is there already changes
nothing, so the same lines may come twice. Sums are kept by minute for a day, for short
windows, and by hour for reports and long ones; limits are rebuilt from them, never from rows.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Select,
    Table,
    delete,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel

from policies.ledger_sql import HOUR_S, MICRO, MINUTE_S, add_sums, insert_contents, insert_rows, read_lines
from policies.quotas import Measure, Scope
from policies.roles import ROLE

MINUTES_KEPT_S = 26 * HOUR_S
"""Windows up to a day are rebuilt from minutes."""

PRUNE_ROWS = 5000
"""In one transaction, so that nobody waits long for it."""


class RequestRow(SQLModel, table=True):
    """A finished request."""

    __tablename__ = "requests"

    id: str = Field(primary_key=True)
    """The answer's `x-request-id`."""
    at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    """When it ended, Unix microseconds."""
    key: str = Field(index=True)
    """The key's id; the key may be gone."""
    role: str
    """Of the key, at that time."""
    model: str
    """As the client named it."""
    entry: str
    """The name in the configuration that this is, or is one of; empty for names that do not exist for this key."""
    backend: str
    operation: str
    stream: int
    attempts: int
    admitted: int
    """1: it counts as a request; 0: it was refused before."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Of the prompt, as the upstream says."""
    cost: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Billionths of a dollar."""
    compute_ms: int = Field(sa_column=Column(BigInteger, nullable=False))
    """For which engines of this machine worked on it."""
    queue_ms: int
    """For which it waited for its turn."""
    first_byte_ms: int | None = None
    total_ms: int
    status: int
    """What the client was told; 499: it left; 0: the gateway died."""
    outcome: str
    """complete, failed, broken (after the first byte), client_left, or crashed: settled at what was held."""
    error: str
    """The code of the failure, or empty."""
    cache: str
    user: str
    tags: list[str] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))


class UsageRow(SQLModel, table=True):
    """Sums over the requests that ended within `grain_s` seconds from `start` on."""

    __tablename__ = "usage"

    grain_s: int = Field(primary_key=True)
    start: int = Field(sa_column=Column(BigInteger, primary_key=True))
    """Unix seconds."""
    key: str = Field(primary_key=True)
    role: str = Field(primary_key=True)
    model: str = Field(primary_key=True)
    backend: str = Field(primary_key=True)
    requests: int = Field(sa_column=Column(BigInteger, nullable=False))
    """That were admitted."""
    refused: int = Field(sa_column=Column(BigInteger, nullable=False))
    failed: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Of those that were admitted, without a complete answer; clients that left aside."""
    prompt_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    completion_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    cached_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    cost: int = Field(sa_column=Column(BigInteger, nullable=False))
    compute_ms: int = Field(sa_column=Column(BigInteger, nullable=False))


class ContentRow(SQLModel, table=True):
    """What was asked and answered, for keys with `log_content: on` and for no others."""

    __tablename__ = "request_contents"

    id: str = Field(primary_key=True)
    request: str
    answer: str


class FeedbackRow(SQLModel, table=True):
    """What people say of an answer."""

    __tablename__ = "feedback"

    id: str = Field(primary_key=True)
    """The request's."""
    key: str = Field(index=True)
    model: str
    stars: int
    """1 to 5."""
    words: str
    at: int = Field(sa_column=Column(BigInteger, nullable=False, index=True))
    """When it was last said, Unix microseconds."""


requests: Table = RequestRow.__table__  # type: ignore[attr-defined]
usage: Table = UsageRow.__table__  # type: ignore[attr-defined]
contents: Table = ContentRow.__table__  # type: ignore[attr-defined]
feedback: Table = FeedbackRow.__table__  # type: ignore[attr-defined]

COUNTED = {
    Measure.REQUESTS: usage.c.requests,
    Measure.TOKENS: usage.c.prompt_tokens + usage.c.completion_tokens,
    Measure.COST: usage.c.cost,
    Measure.COMPUTE: usage.c.compute_ms,
}


IN_A_ROW = {
    Measure.REQUESTS: requests.c.admitted,
    Measure.TOKENS: requests.c.prompt_tokens + requests.c.completion_tokens,
    Measure.COST: requests.c.cost,
    Measure.COMPUTE: requests.c.compute_ms,
}


class Ledger:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def add(self, rows: Sequence[bytes], contents: Sequence[bytes] = ()) -> int:
        """
        Args:
            rows: `RequestRow` as JSON, no id twice.
            contents: `ContentRow` as JSON.

        Returns:
            How many of the rows are new.
        """
        lines = read_lines(rows)
        while not await self._added(rows, lines, contents):
            known = await self._known([line.id for line in lines])
            fresh = [(row, line) for row, line in zip(rows, lines, strict=True) if line.id not in known]
            rows, lines = [row for row, _ in fresh], [line for _, line in fresh]
        return len(rows)

    async def _added(self, rows: Sequence[bytes], lines: Sequence[Any], contents: Sequence[bytes]) -> bool:
        """All or nothing; False: some are there already, so the sums of all would be too much."""
        async with self._database.connect() as connection:
            if rows and await insert_rows(connection, rows, lines) != len(rows):
                await connection.rollback()
                return False
            await add_sums(connection, lines)
            await insert_contents(connection, contents)
            await connection.commit()
            return True

    async def _known(self, ids: Sequence[str]) -> set[str]:
        async with self._database.connect() as connection:
            query = select(requests.c.id).where(requests.c.id.in_(ids))
            return set((await connection.execute(query)).scalars())

    async def used(
        self, scope: Scope, measure: Measure, *, since_s: float, now_s: float, whole: bool = False
    ) -> list[tuple[float, int]]:
        """As `quotas.History`: sums that reach into that time, or lie in it as a whole, each at its end."""
        grain_s = MINUTE_S if since_s >= now_s - MINUTES_KEPT_S + HOUR_S else HOUR_S
        query = (
            select(usage.c.start, usage.c.model, func.sum(COUNTED[measure]))
            .where(
                usage.c.grain_s == grain_s,
                usage.c.start >= since_s if whole else usage.c.start > since_s - grain_s,
                _held_by(scope.holder),
            )
            .group_by(usage.c.start, usage.c.model)
        )
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        model = scope.model
        return [
            (float(start + grain_s), int(amount))
            for start, name, amount in rows
            if amount and (model is None or fnmatchcase(name, model))
        ]

    async def recent(self, scope: Scope, measure: Measure, *, since_s: float, until_s: float) -> int:
        """As `quotas.History`, over rows."""
        key = (
            requests.c.role == scope.holder.removeprefix(ROLE)
            if scope.holder.startswith(ROLE)
            else requests.c.key == scope.holder
        )
        query = select(requests.c.model, func.sum(IN_A_ROW[measure])).where(
            key, requests.c.at > int(since_s * MICRO), requests.c.at <= int(until_s * MICRO)
        )
        async with self._database.connect() as connection:
            rows = (await connection.execute(query.group_by(requests.c.model))).all()
        model = scope.model
        return sum(int(amount) for name, amount in rows if model is None or fnmatchcase(name, model))

    async def prune(self, *, rows_before_s: float, hours_before_s: float, now_s: float) -> int:
        """Remove what is older, a part at a time. Returns how many rows of requests went."""
        gone = 0
        old = select(requests.c.id).where(requests.c.at < int(rows_before_s * MICRO)).limit(PRUNE_ROWS)
        while ids := await self._pruned(old):
            gone += len(ids)
        for grain_s, before_s in ((MINUTE_S, now_s - MINUTES_KEPT_S), (HOUR_S, hours_before_s)):
            async with self._database.begin() as connection:
                await connection.execute(delete(usage).where(usage.c.grain_s == grain_s, usage.c.start < before_s))
        return gone

    async def _pruned(self, old: Select[tuple[str]]) -> Sequence[str]:
        async with self._database.begin() as connection:
            removal = delete(requests).where(requests.c.id.in_(old)).returning(requests.c.id)
            ids = (await connection.execute(removal)).scalars().all()
            for table in (contents, feedback):
                await connection.execute(delete(table).where(table.c.id.in_(ids)))
        return ids


def _held_by(holder: str) -> ColumnElement[bool]:
    if holder.startswith(ROLE):
        return usage.c.role == holder.removeprefix(ROLE)
    return usage.c.key == holder
