"""/admin/audit: who changed what."""

from typing import Any

from litestar import Request, get
from litestar.params import FromQuery

from gateway.auth import needs_key
from gateway.routes.admin.pages import Limit, page
from gateway.routes.answers import services_of
from policies.audit import AuditRow
from policies.ledger_sql import MICRO


@get("/admin/audit", guards=[needs_key], tags=["Administration"], summary="List administrative changes")
async def list_audit(
    request: Request[Any, Any, Any],
    limit: Limit = 100,
    after: FromQuery[str | None] = None,
    object_id: FromQuery[str | None] = None,
) -> dict[str, Any]:
    """Newest first; `object_id`: of one key only."""
    rows = await services_of(request).house.audit.list(limit=limit + 1, after=after, object_=object_id)
    return page([audit_object(row) for row in rows], limit)


def audit_object(row: AuditRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "audit",
        "created_at": row.at // MICRO,
        "actor": row.actor,
        "action": row.action,
        "object_id": row.object,
        "request_id": row.request_id or None,
        "details": row.details,
    }
