"""/admin/usage: who used how much of what, as JSON or CSV."""

import csv
import io
from typing import Any, Literal

from litestar import Request, Response, get
from litestar.params import FromQuery

from backends.errors import InvalidRequest
from gateway.auth import needs_key
from gateway.routes.admin.pages import Time
from gateway.routes.answers import services_of
from policies.quotas import Measure
from policies.reports import GROUPS, Question

COLUMNS = (
    "requests refused failed prompt_tokens completion_tokens cached_tokens total_tokens cost_usd compute_s".split()
)


@get("/admin/usage", guards=[needs_key], tags=["Administration"], summary="Sums of usage")
async def get_usage(
    request: Request[Any, Any, Any],
    group_by: FromQuery[str] = "key,model,day",
    format: FromQuery[Literal["json", "csv"]] = "json",  # noqa: A002 - its name in the contract
    key: FromQuery[str | None] = None,
    role: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    backend: FromQuery[str | None] = None,
    user: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    since: Time = None,
    until: Time = None,
) -> Response[Any]:
    """`group_by`: any of key, role, model, backend, hour, day, user, tag, with commas; days and hours are UTC.

    `since` and `until` are Unix seconds. Sums are kept by the hour, so the hours that they lie in count whole; by user or tag,
    it is summed over single requests, as long as those are kept.
    """
    groups = groups_of(group_by)
    given = {"key": key, "role": role, "model": model, "backend": backend, "user": user}
    exact = {name: value for name, value in given.items() if value is not None}
    rows = await services_of(request).house.reports.usage(groups, Question(since, until, exact, tag))
    found = [usage_object(row, groups) for row in rows]
    if format == "csv":
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        return Response(as_csv(found, [*groups, *COLUMNS]), media_type="text/csv", headers=headers)
    return Response({"object": "list", "data": found, "group_by": groups, "since": since, "until": until})


def groups_of(group_by: str) -> list[str]:
    groups = list(dict.fromkeys(name.strip() for name in group_by.split(",") if name.strip()))
    if unknown := [name for name in groups if name not in GROUPS]:
        raise InvalidRequest(f"'{unknown[0][:64]}' is none of {', '.join(GROUPS)}.", param="group_by")
    return groups


def usage_object(row: dict[str, Any], groups: list[str]) -> dict[str, Any]:
    return {
        **{name: row[name] for name in groups},
        **{name: row[name] for name in COLUMNS[:6]},
        "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
        "cost_usd": row["cost"] / Measure.COST.unit,
        "compute_s": row["compute_ms"] / Measure.COMPUTE.unit,
    }


def as_csv(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """A cell that begins as a formula would is written as text: users and tags are clients' words."""
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"'{value}" if is_formula(value) else value for name, value in row.items()})
    return sheet.getvalue()


def is_formula(value: Any) -> bool:
    return isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
