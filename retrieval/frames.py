"""Rows as pandas writes and reads them: `DataFrame.to_json(orient=…)`. Pure."""

from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[Sequence[Any]]


def _records(columns: Sequence[str], rows: Rows) -> Any:
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _split(columns: Sequence[str], rows: Rows) -> Any:
    return {"columns": list(columns), "index": list(range(len(rows))), "data": [list(row) for row in rows]}


def _index(columns: Sequence[str], rows: Rows) -> Any:
    return {str(number): dict(zip(columns, row, strict=True)) for number, row in enumerate(rows)}


def _columns(columns: Sequence[str], rows: Rows) -> Any:
    return {name: {str(number): row[place] for number, row in enumerate(rows)} for place, name in enumerate(columns)}


def _values(_: Sequence[str], rows: Rows) -> Any:
    return [list(row) for row in rows]


def _table(columns: Sequence[str], rows: Rows) -> Any:
    kinds = [_kind(rows[0][place]) if rows else "string" for place in range(len(columns))]
    fields = [{"name": "index", "type": "integer"}]
    fields += [{"name": name, "type": kind} for name, kind in zip(columns, kinds, strict=True)]
    data = [{"index": number, **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows)]
    return {"schema": {"fields": fields, "primaryKey": ["index"], "pandas_version": "1.4.0"}, "data": data}


def _kind(value: Any) -> str:
    return (
        "integer" if isinstance(value, int) else "number" if isinstance(value, float) else "string"
    )  # as pandas: lists, too


ORIENTATIONS: dict[str, Callable[[Sequence[str], Rows], Any]] = {
    "records": _records,
    "split": _split,
    "index": _index,
    "columns": _columns,
    "values": _values,
    "table": _table,
}
"""By pandas' names."""
