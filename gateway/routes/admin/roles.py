"""/admin/roles: the roles of the configuration in use, the built-in ones with them. They are changed in the file."""

from typing import Any

from litestar import Request, get

from gateway.auth import needs_key
from gateway.routes.answers import services_of


@get("/admin/roles", guards=[needs_key], tags=["Administration"], summary="List roles")
async def list_roles(request: Request[Any, Any, Any]) -> dict[str, Any]:
    roles = services_of(request).roles.values()
    data = [{"id": role.name, "object": "role", **role.settings.model_dump(exclude_none=True)} for role in roles]
    return {"object": "list", "data": data, "first_id": data[0]["id"], "last_id": data[-1]["id"], "has_more": False}
