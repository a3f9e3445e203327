"""Budgets that are nearly used up: each crossing of a threshold is noted once, whoever sees it first, and told until it is heard."""

import math
from typing import Any, NamedTuple

from sqlalchemy import JSON, BigInteger, Column, Table, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel

from policies.quotas import Limit
from policies.spans import Calendar

KEPT_S = 86_400 * 90
"""Rows of alerts; longer than any window."""


class AlertRow(SQLModel, table=True):
    __tablename__ = "alerts"

    id: str = Field(primary_key=True)
    """The limit, the threshold and the number of the window: one crossing."""
    event: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    made_at: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Unix seconds."""
    sent_at: int | None = Field(default=None, sa_column=Column(BigInteger, index=True))


alerts: Table = AlertRow.__table__  # type: ignore[attr-defined]


class Crossing(NamedTuple):
    name: str
    """Of limit and threshold."""
    number: int
    """Of the window."""
    quiet_s: float
    """For so long after one crossing there is no other of that name; 0 where the window's number says it all."""
    event: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.name}|{self.number}"


def crossings(limit: Limit, used: int, thresholds: list[float], now_s: float) -> list[Crossing]:
    """The thresholds that a limit has reached. A rolling window that stays full crosses again when its length has passed."""
    span = limit.span
    assert span is not None
    number = span.slice_at(now_s) if isinstance(span, Calendar) else math.floor(now_s)
    quiet_s = 0.0 if isinstance(span, Calendar) else span.seconds
    return [
        Crossing(
            f"{limit.scope}|{limit.measure}|{span}|{limit.amount}|{threshold:g}",
            number,
            quiet_s,
            _event(limit, used, threshold),
        )
        for threshold in thresholds
        if limit.amount > 0 and used >= threshold * limit.amount
    ]


def _event(limit: Limit, amount: int, threshold: float) -> dict[str, Any]:
    unit = limit.measure.unit
    return {
        "holder": limit.scope.holder,
        "model": limit.scope.model,
        "measure": limit.measure.value,
        "per": str(limit.span),
        "limit": limit.amount / unit,
        "used": amount / unit,
        "threshold": threshold,
    }


class Alerts:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def note(self, crossing: Crossing, now_s: float) -> bool:
        """Whether it is new."""
        insert = postgresql.insert if self._database.dialect.name == "postgresql" else sqlite.insert
        row = {"id": crossing.id, "event": crossing.event, "made_at": int(now_s)}
        before = select(alerts.c.id).where(
            alerts.c.id.startswith(f"{crossing.name}|", autoescape=True),
            alerts.c.made_at > int(now_s - crossing.quiet_s),
        )
        async with self._database.connect() as connection:
            if crossing.quiet_s and (await connection.execute(before.limit(1))).first() is not None:
                return False
        async with self._database.begin() as connection:
            made = insert(alerts).values(row).on_conflict_do_nothing().returning(alerts.c.id)
            return (await connection.execute(made)).first() is not None

    async def unsent(self, *, since_s: float) -> list[AlertRow]:
        """Oldest first."""
        query = select(alerts).where(alerts.c.sent_at.is_(None), alerts.c.made_at >= int(since_s))
        async with self._database.connect() as connection:
            rows = await connection.execute(query.order_by(alerts.c.made_at, alerts.c.id).limit(100))
            return [AlertRow(**row) for row in rows.mappings()]

    async def sent(self, alert_id: str, now_s: float) -> None:
        async with self._database.begin() as connection:
            await connection.execute(update(alerts).where(alerts.c.id == alert_id).values(sent_at=int(now_s)))
            await connection.execute(delete(alerts).where(alerts.c.made_at < int(now_s) - KEPT_S))
