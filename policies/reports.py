"""Questions to the ledger: what happened, and how much of it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncEngine

from policies.errors import NotThere
from policies.ledger import contents, feedback, requests, usage
from policies.ledger_sql import HOUR_S, MICRO, SUMS

DAY_S = 86_400

SUMMED = {"hour": HOUR_S, "day": DAY_S}
GROUPS = ("key", "role", "model", "backend", *SUMMED, "user", "tag")
"""What usage can be grouped by. The last two are known of single requests only, for as long as their rows are kept."""

EXACT = ("key", "role", "model", "backend", "status", "outcome", "user")
"""Filters that compare a column."""


class Question(NamedTuple):
    """Which requests; None: all of them."""

    since_s: float | None = None
    until_s: float | None = None
    exact: Mapping[str, str | int] = {}
    """Columns of `EXACT` and what is in them."""
    tag: str | None = None

    @property
    def possible(self) -> bool:
        """Names of nothing, as NUL is in, are not for every database to be asked about."""
        return all(str(value).isprintable() for value in (*self.exact.values(), self.tag or ""))


class Reports:
    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def requests(
        self, question: Question, *, limit: int, after: str | None = None, oldest_first: bool = False
    ) -> list[dict[str, Any]]:
        """Rows of the ledger with their feedback; `after` is the id of the last one seen.

        Raises:
            NotThere: there is no `after`.
        """
        if not question.possible or (after is not None and not after.isprintable()):
            return []
        place = tuple_(requests.c.at, requests.c.id)
        order = (requests.c.at, requests.c.id) if oldest_first else (requests.c.at.desc(), requests.c.id.desc())
        query = _with_feedback().where(*self._conditions(question)).order_by(*order).limit(limit)
        async with self._database.connect() as connection:
            if after is not None:
                at = (await connection.execute(select(requests.c.at).where(requests.c.id == after))).scalar()
                if at is None:
                    raise NotThere("request", after)
                last = tuple_(literal(at), literal(after))
                query = query.where(place > last if oldest_first else place < last)
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def request(self, request_id: str) -> dict[str, Any]:
        """One row with its feedback and, where its key has that kept, `request` and `answer`.

        Raises:
            NotThere
        """
        query = (
            _with_feedback()
            .add_columns(contents.c.request, contents.c.answer)
            .join(contents, contents.c.id == requests.c.id, isouter=True)
            .where(requests.c.id == request_id)
        )
        if not request_id.isprintable():
            raise NotThere("request", request_id)
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise NotThere("request", request_id)
        return dict(row)

    async def usage(self, groups: Sequence[str], question: Question) -> list[dict[str, Any]]:
        """Sums by these `GROUPS`, in their order. From sums by hour where those are enough, so whole hours count then."""
        rows = (
            bool({"user", "tag"}.intersection(groups))
            or question.tag is not None
            or bool(question.exact.keys() - usage.c.keys())
        )
        query = self._sums_of_rows(groups, question) if rows else self._sums_of_hours(groups, question)
        async with self._database.connect() as connection:
            found = (await connection.execute(query)).mappings().all()
        return [{name: _shown(name, value) for name, value in row.items()} for row in found]

    def _sums_of_hours(self, groups: Sequence[str], question: Question) -> Select[Any]:
        start = usage.c.start
        names = [_label(name, (start - start % SUMMED[name]) if name in SUMMED else usage.c[name]) for name in groups]
        conditions: list[ColumnElement[bool]] = [usage.c.grain_s == HOUR_S]
        conditions += [usage.c[name] == value for name, value in question.exact.items()]
        if question.since_s is not None:
            conditions.append(start > question.since_s - HOUR_S)
        if question.until_s is not None:
            conditions.append(start < question.until_s)
        sums = [_label(name, func.coalesce(func.sum(usage.c[name]), 0)) for name in SUMS]
        return select(*names, *sums).where(*conditions).group_by(*names).order_by(*names)

    def _sums_of_rows(self, groups: Sequence[str], question: Question) -> Select[Any]:
        seconds = requests.c.at / MICRO if self._database.dialect.name == "postgresql" else requests.c.at // MICRO
        tag = _each_tag(self._database.dialect.name)
        names = []
        for name in groups:
            if name in SUMMED:
                names.append(_label(name, seconds - seconds % SUMMED[name]))
            else:
                names.append(_label(name, tag.c.value if name == "tag" else requests.c[name]))
        failed = and_(requests.c.admitted == 1, requests.c.outcome.not_in(("complete", "client_left")))
        counted: dict[str, Any] = {
            "requests": func.sum(requests.c.admitted),
            "refused": func.sum(1 - requests.c.admitted),
        }
        counted["failed"] = func.count().filter(failed)
        sums = [_label(name, func.coalesce(counted.get(name, func.sum(requests.c.get(name))), 0)) for name in SUMS]
        query = select(*names, *sums).select_from(
            requests.join(tag, literal(True), isouter=True) if "tag" in groups else requests
        )
        return query.where(*self._conditions(question)).group_by(*names).order_by(*names)

    def _conditions(self, question: Question) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = [requests.c[name] == value for name, value in question.exact.items()]
        if question.since_s is not None:
            conditions.append(requests.c.at >= int(question.since_s * MICRO))
        if question.until_s is not None:
            conditions.append(requests.c.at < int(question.until_s * MICRO))
        if question.tag is not None:
            tag = _each_tag(self._database.dialect.name)
            conditions.append(select(literal(1)).select_from(tag).where(tag.c.value == question.tag).exists())
        return conditions


def _with_feedback() -> Select[Any]:
    joined = requests.join(feedback, feedback.c.id == requests.c.id, isouter=True)
    return select(requests, feedback.c.stars, feedback.c.words).select_from(joined)


def _each_tag(dialect: str) -> Any:
    """A row per tag of the request beside it."""
    function = func.json_array_elements_text if dialect == "postgresql" else func.json_each
    return function(requests.c.tags).table_valued("value", name="tag")


def _label(name: str, column: Any) -> Any:
    return column.label(name)


def _shown(name: str, value: Any) -> Any:
    if name not in SUMMED:
        return value if value is None or isinstance(value, str) else int(value)
    shape = "%Y-%m-%d" if name == "day" else "%Y-%m-%dT%H:00Z"
    return datetime.fromtimestamp(int(value), UTC).strftime(shape)
