"""The statements that take lines of JSON into the ledger's tables, in SQLite's and in PostgreSQL's words.

The database reads the JSON, so that thousands of rows a second cost this process next to nothing.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import TextClause, text

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


def array(lines: Sequence[bytes]) -> str:
    return (b"[" + b",".join(lines) + b"]").decode()


def lines_of(dialect: str, fields: Mapping[str, str]) -> str:
    """The parameter `lines`, an array of JSON objects, as a table."""
    if dialect == "postgresql":
        columns = ", ".join(f'"{name}" {kind}' for name, kind in fields.items())
        return f"SELECT * FROM json_to_recordset(CAST(:lines AS json)) AS t({columns})"
    columns = ", ".join(f"value->>'{name}' AS \"{name}\"" for name in fields)
    return f"SELECT {columns} FROM json_each(:lines)"


def insertion(table: str, fields: Mapping[str, str], dialect: str) -> TextClause:
    columns = ", ".join(f'"{name}"' for name in fields)
    return text(
        f"INSERT INTO {table} ({columns}) SELECT {columns} FROM ({lines_of(dialect, fields)}) AS new WHERE true ON CONFLICT (id) DO NOTHING"
    )


def summation(dialect: str) -> TextClause:
    """Adds lines whose ids are not there yet. A name that no configuration has would make a sum of its own for every typo."""
    failed = "CASE WHEN admitted = 1 AND outcome NOT IN ('complete', 'client_left') THEN 1 ELSE 0 END"
    sums = ("admitted", "1 - admitted", failed, *SUMS[3:])
    added = ", ".join(f"sum({one})" for one in sums)
    updates = ", ".join(f"{name} = usage.{name} + excluded.{name}" for name in SUMS)
    return text(
        f"INSERT INTO usage (grain_s, start, key, role, model, backend, {', '.join(SUMS)}) "
        f"SELECT grain, at / {MICRO} / grain * grain AS slice, key, role, named, backend, {added} FROM ("
        "SELECT new.*, CAST(:grain_s AS bigint) AS grain, CASE entry WHEN '' THEN '' ELSE model END AS named "
        f"FROM ({lines_of(dialect, ROW)}) AS new) AS line "
        "WHERE NOT EXISTS (SELECT 1 FROM requests WHERE requests.id = line.id) "
        "GROUP BY grain, slice, key, role, named, backend "
        "ON CONFLICT (grain_s, start, key, role, model, backend) DO UPDATE SET " + updates
    )
