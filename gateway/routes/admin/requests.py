"""/admin/requests: the ledger, row by row."""

from typing import Any

from litestar import Request, get
from litestar.params import FromPath, FromQuery

from gateway.auth import needs_key
from gateway.routes.admin.pages import Limit, Order, Status, Time, page
from gateway.routes.answers import services_of
from policies.ledger_sql import MICRO
from policies.quotas import Measure
from policies.reports import Question


@get("/admin/requests", guards=[needs_key], tags=["Administration"], summary="List finished requests")
async def list_requests(
    request: Request[Any, Any, Any],
    limit: Limit = 100,
    after: FromQuery[str | None] = None,
    order: FromQuery[Order] = "desc",
    key: FromQuery[str | None] = None,
    role: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    backend: FromQuery[str | None] = None,
    status: Status = None,
    outcome: FromQuery[str | None] = None,
    user: FromQuery[str | None] = None,
    tag: FromQuery[str | None] = None,
    since: Time = None,
    until: Time = None,
) -> dict[str, Any]:
    """Newest first, a second after they ended at the latest. `since` and `until` are Unix seconds."""
    given = {"key": key, "role": role, "model": model, "backend": backend, "status": status, "outcome": outcome}
    exact = {name: value for name, value in {**given, "user": user}.items() if value is not None}
    question = Question(since, until, exact, tag)
    reports = services_of(request).house.reports
    rows = await reports.requests(question, limit=limit + 1, after=after, oldest_first=order == "asc")
    return page([request_object(row) for row in rows], limit)


@get("/admin/requests/{request_id:str}", guards=[needs_key], tags=["Administration"], summary="Read a request")
async def get_request(request: Request[Any, Any, Any], request_id: FromPath[str]) -> dict[str, Any]:
    """With `content` where its key has `log_content: on`, and null where it has not."""
    row = await services_of(request).house.reports.request(request_id)
    content = {"request": row["request"], "answer": row["answer"]} if row["request"] is not None else None
    return {**request_object(row), "content": content}


def request_object(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "request",
        "created_at": row["at"] // MICRO,
        **{
            name: row[name]
            for name in ("key", "role", "model", "backend", "operation", "attempts", "status", "outcome")
        },
        "stream": bool(row["stream"]),
        "usage": {
            "prompt_tokens": row["prompt_tokens"],
            "completion_tokens": row["completion_tokens"],
            "total_tokens": row["prompt_tokens"] + row["completion_tokens"],
            "prompt_tokens_details": {"cached_tokens": row["cached_tokens"]},
        },
        "cost_usd": row["cost"] / Measure.COST.unit,
        "compute_s": row["compute_ms"] / Measure.COMPUTE.unit,
        **{name: row[name] for name in ("queue_ms", "first_byte_ms", "total_ms")},
        "error": row["error"] or None,
        "cache": row["cache"] or None,
        "user": row["user"] or None,
        "tags": row["tags"],
        "feedback": {"stars": row["stars"], "text": row["words"]} if row["stars"] is not None else None,
    }
