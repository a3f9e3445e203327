"""/admin/keys: create, list, read, change, rotate, remove. The secret is shown once, by create and rotate."""

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.params import FromPath, FromQuery
from pydantic import ValidationError

from backends.errors import InvalidRequest
from gateway.auth import needs_key
from gateway.routes.admin.pages import Limit, page
from gateway.routes.answers import actor_of, exchange_of, read_as, services_of
from policies.errors import RoleForbidden
from policies.keys import KeyRow, NewKey
from policies.roles import ADMIN, KINDS
from policies.settings import LimitSettings

MAX_METADATA_PAIRS = 16
MAX_TIME_S = 253_402_300_799
"""The end of the year 9999."""


class KeyFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What may be said about a key. Times are Unix seconds; lists are globs that narrow the role's."""

    name: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")] | msgspec.UnsetType
    ) = msgspec.UNSET
    role: str | msgspec.UnsetType = msgspec.UNSET
    limits: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    models: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    collections: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    prompts: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    paths: list[str] | msgspec.UnsetType | None = msgspec.UNSET
    expires_at: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_S)] | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET
    log_content: bool | Literal["on", "off"] | msgspec.UnsetType = msgspec.UNSET
    """`on`: what is asked and answered with it is kept in the ledger."""


@post("/admin/keys", guards=[needs_key], status_code=201, tags=["Administration"], summary="Create a key")
async def create_key(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """`key` is shown this once."""
    fields = await read_as(request, KeyFields)
    if fields.name is msgspec.UNSET:
        raise InvalidRequest("Missing required parameter: 'name'.", param="name", code="missing_required_parameter")
    new = NewKey(
        name=fields.name,
        role=fields.role or "default",
        expires_at=_given(fields.expires_at),
        limits=tuple(limits_of(fields)),
        narrowed=_narrowed(fields),
        metadata=metadata_of(fields),
        disabled=fields.disabled is True,
        log_content=fields.log_content in (True, "on"),
    )
    check_role(request, new.role)
    row, secret = await services_of(request).keys.create(new, by=actor_of(request))
    return key_object(row) | {"key": secret}


@get("/admin/keys", guards=[needs_key], tags=["Administration"], summary="List keys")
async def list_keys(
    request: Request[Any, Any, Any], limit: Limit = 100, after: FromQuery[str | None] = None
) -> dict[str, Any]:
    """Newest first; `after` is the last id of the page before."""
    rows = await services_of(request).keys.list(limit=limit + 1, after=after)
    return page([key_object(row) for row in rows], limit)


@get("/admin/keys/{key_id:str}", guards=[needs_key], tags=["Administration"], summary="Read a key")
async def get_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> dict[str, Any]:
    return key_object(await services_of(request).keys.get(key_id))


@patch("/admin/keys/{key_id:str}", guards=[needs_key], tags=["Administration"], summary="Change a key")
async def change_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> dict[str, Any]:
    """Any of the fields of create, and `disabled`. What is not named stays."""
    fields, keys = await read_as(request, KeyFields), services_of(request).keys
    await check_key(request, key_id)
    changes: dict[str, Any] = {}
    for name in ("name", "role", "expires_at", "disabled"):
        if (value := getattr(fields, name)) is not msgspec.UNSET:
            changes[name] = value
    if "role" in changes:
        check_role(request, changes["role"])
    if fields.log_content is not msgspec.UNSET:
        changes["log_content"] = fields.log_content in (True, "on")
    if fields.limits is not msgspec.UNSET:
        changes["limits"] = [limit.model_dump(exclude_none=True) for limit in limits_of(fields)]
    if fields.metadata is not msgspec.UNSET:
        changes["metadata"] = metadata_of(fields)
    cleared = {kind for kind in KINDS if getattr(fields, kind, msgspec.UNSET) is None}
    if (narrowed := _narrowed(fields)) or cleared:
        before = (await keys.get(key_id)).narrowed
        changes["narrowed"] = {kind: globs for kind, globs in (before | narrowed).items() if kind not in cleared}
    return key_object(await keys.update(key_id, by=actor_of(request), **changes))


@post(
    "/admin/keys/{key_id:str}/rotate",
    guards=[needs_key],
    status_code=200,
    tags=["Administration"],
    summary="A new secret",
)
async def rotate_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> dict[str, Any]:
    """The old secret ends now."""
    await check_key(request, key_id)
    row, secret = await services_of(request).keys.rotate(key_id, by=actor_of(request))
    return key_object(row) | {"key": secret}


@delete(
    "/admin/keys/{key_id:str}", guards=[needs_key], status_code=200, tags=["Administration"], summary="Remove a key"
)
async def delete_key(request: Request[Any, Any, Any], key_id: FromPath[str]) -> dict[str, Any]:
    await check_key(request, key_id)
    await services_of(request).keys.delete(key_id, by=actor_of(request))
    return {"id": key_id, "object": "key.deleted", "deleted": True}


async def check_key(request: Request[Any, Any, Any], key_id: str) -> None:
    """
    Raises:
        KeyNotFound, RoleForbidden
    """
    check_role(request, (await services_of(request).keys.get(key_id)).role)


def check_role(request: Request[Any, Any, Any], name: str) -> None:
    """Whoever may administer keys must not make themselves an administrator.

    Raises:
        RoleForbidden
    """
    caller, role = exchange_of(request).caller, services_of(request).roles.get(name)
    unlimited = caller is not None and caller.role.name == ADMIN.name and "paths" not in dict(caller.narrowed)
    if not unlimited and (role is None or role.administers):  # a role that left the configuration may come back
        raise RoleForbidden(name[:128])


def key_object(row: KeyRow) -> dict[str, Any]:
    """A key without its secret, of which nobody here knows more than a digest."""
    return {
        "id": row.id,
        "object": "key",
        "name": row.name,
        "role": row.role,
        "disabled": row.disabled,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "limits": row.limits,
        **{kind: row.narrowed.get(kind) for kind in ("models", "collections", "prompts", "paths")},
        "metadata": row.key_metadata,
        "log_content": "on" if row.log_content else "off",
    }


def limits_of(fields: KeyFields) -> list[LimitSettings]:
    given = fields.limits if fields.limits is not msgspec.UNSET else []
    limits = []
    for index, one in enumerate(given):
        try:
            limits.append(LimitSettings.model_validate(one))
        except ValidationError as exc:
            error = exc.errors()[0]
            where = ".".join(["limits", str(index), *map(str, error["loc"])])
            raise InvalidRequest(f"{where}: {str(error['msg']).removeprefix('Value error, ')}", param=where) from None
    return limits


def metadata_of(fields: KeyFields) -> dict[str, str]:
    metadata = fields.metadata if fields.metadata is not msgspec.UNSET else {}
    if len(metadata) > MAX_METADATA_PAIRS or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items()):
        raise InvalidRequest(
            "metadata has at most 16 pairs, names of 64 and values of 512 characters.", param="metadata"
        )
    return metadata


def _narrowed(fields: KeyFields) -> dict[str, list[str]]:
    return {kind: globs for kind in KINDS if isinstance(globs := getattr(fields, kind, None), list)}


def _given(value: int | msgspec.UnsetType | None) -> int | None:
    return None if value is msgspec.UNSET else value
