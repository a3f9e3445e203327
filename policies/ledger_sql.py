"""Lines of JSON into the ledger's tables, as each database takes them with the least work for this process: SQLite gets values,
many rows in one call; PostgreSQL gets the JSON as it is and reads it itself.
"""

import operator
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

MICRO = 1_000_000
"""Times of rows are Unix microseconds: two requests of one client rarely end in the same one."""

COUNTS = (
    "at stream attempts admitted prompt_tokens completion_tokens cached_tokens cost compute_ms queue_ms first_byte_ms "
    "total_ms status"
).split()
WORDS = "id key role model entry backend operation outcome error cache user".split()

ROW = dict.fromkeys(COUNTS, "bigint") | dict.fromkeys(WORDS, "text") | {"tags": "json"}
CONTENT = dict.fromkeys(("id", "request", "answer"), "text")
"""Columns and their types, of tables that lines of JSON go into."""

SUMS = ("requests", "refused", "failed", "prompt_tokens", "completion_tokens", "cached_tokens", "cost", "compute_ms")

NOTHING = (0,) * len(SUMS)

MINUTE_S, HOUR_S = 60, 3600
"""Seconds that a sum is over."""

UsageKey = tuple[int, int, str, str, str, str]
"""grain_s, start, key, role, model, backend"""

_PYTHON = {"bigint": int | None, "text": str | None, "json": msgspec.Raw}
Line: Any = msgspec.defstruct("Line", [(name, _PYTHON[kind]) for name, kind in ROW.items()])
_line = msgspec.json.Decoder(Line)
_content = msgspec.json.Decoder(msgspec.defstruct("ContentLine", [(name, str) for name in CONTENT]))
_values_of_line = operator.attrgetter(*(name for name in ROW if name != "tags"))
_amounts = operator.attrgetter(*SUMS[3:])
_values_of_content = operator.attrgetter(*CONTENT)


def read_lines(rows: Iterable[bytes]) -> list[Any]:
    return [_line.decode(row) for row in rows]


async def insert_rows(connection: AsyncConnection, rows: Sequence[bytes], lines: Sequence[Any]) -> int:
    """
    Args:
        lines: of `rows`, read.

    Returns:
        How many were not there yet; the others stay as they are.
    """
    if connection.dialect.name == "postgresql":
        return await _insert_json(connection, "requests", ROW, rows)
    values = [(*_values_of_line(line), bytes(line.tags).decode()) for line in lines]
    return await _insert_values(connection, "requests", ROW, values)


async def insert_contents(connection: AsyncConnection, rows: Sequence[bytes]) -> None:
    if connection.dialect.name == "postgresql":
        await _insert_json(connection, "request_contents", CONTENT, rows)
    elif rows:
        values = [_values_of_content(_content.decode(row)) for row in rows]
        await _insert_values(connection, "request_contents", CONTENT, values)


async def add_sums(connection: AsyncConnection, lines: Iterable[Any]) -> None:
    """In the order of their keys, so that two who do this at once never wait for each other in a circle."""
    sums = sums_of(lines)
    columns = ("grain_s", "start", "key", "role", "model", "backend")
    names = [*columns, *SUMS]
    updates = ", ".join(f"{name} = usage.{name} + excluded.{name}" for name in SUMS)
    statement = (
        f"INSERT INTO usage ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)}) "
        f"ON CONFLICT ({', '.join(columns)}) DO UPDATE SET {updates}"
    )
    rows = [dict(zip(names, (*key, *sums[key]), strict=True)) for key in sorted(sums)]
    if rows:
        await connection.execute(text(statement), rows)


def sums_of(lines: Iterable[Any]) -> dict[UsageKey, Sequence[int]]:
    """What lines come to, by minute and hour. A name that no configuration has would make a sum of its own for every typo."""
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for line in lines:
        named = line.model if line.entry else ""
        groups[line.at // MICRO // MINUTE_S * MINUTE_S, line.key, line.role, named, line.backend].append(line)
    sums: dict[UsageKey, Sequence[int]] = {}
    for (minute, *who), found in groups.items():
        admitted = sum(line.admitted for line in found)
        failed = sum(line.admitted for line in found if line.outcome not in ("complete", "client_left"))
        amounts = [admitted, len(found) - admitted, failed, *map(sum, zip(*map(_amounts, found), strict=True))]
        for grain_s in (MINUTE_S, HOUR_S):
            key: Any = (grain_s, minute - minute % grain_s, *who)
            sums[key] = list(map(operator.add, sums.get(key, NOTHING), amounts))
    return sums


async def _insert_values(
    connection: AsyncConnection, table: str, fields: Mapping[str, str], values: Sequence[tuple[Any, ...]]
) -> int:
    places = ", ".join("?" * len(fields))
    statement = f"INSERT INTO {table} ({_columns(fields)}) VALUES ({places}) ON CONFLICT (id) DO NOTHING"
    return int((await connection.exec_driver_sql(statement, list(values))).rowcount)


async def _insert_json(
    connection: AsyncConnection, table: str, fields: Mapping[str, str], rows: Sequence[bytes]
) -> int:
    typed = ", ".join(f'"{name}" {kind}' for name, kind in fields.items())
    statement = (
        f"INSERT INTO {table} ({_columns(fields)}) SELECT {_columns(fields)} "
        f"FROM json_to_recordset(CAST(:lines AS json)) AS t({typed}) ON CONFLICT (id) DO NOTHING"
    )
    lines = (b"[" + b",".join(rows) + b"]").decode()
    return int((await connection.execute(text(statement), {"lines": lines})).rowcount)


def _columns(fields: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in fields)
