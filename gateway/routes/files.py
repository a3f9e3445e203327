"""/v1/files: what is uploaded, for vector stores to read."""

from typing import Any
from urllib.parse import quote

from litestar import Request, delete, get, post
from litestar.params import FromPath, FromQuery
from litestar.response import Stream
from litestar.types import ASGIApp

from gateway.auth import needs_key
from gateway.collection_objects import deleted, file_object
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.admin.pages import page
from gateway.routes.answers import exchange_of, services_of
from gateway.routes.paging import Cursor, FileLimit, Order, asked_page
from gateway.routes.uploads import Headers, UploadRoute
from gateway.services import Services
from gateway.upload import Upload
from policies.roles import Caller

PATH = "/v1/files"
FORM_BYTES = 256 * 1024
"""Of a form, around the file."""


async def _keep(services: Services, exchange: Exchange, upload: Upload, outlet: Outlet, headers: Headers) -> None:
    await services.file_desk.add(exchange, upload, outlet)


UPLOAD = UploadRoute(
    PATH, "file_upload", _keep, limit_bytes=lambda services: int(services.knowledge.limits.max_mb * 2**20) + FORM_BYTES
)


@post(PATH, status_code=200, tags=["Files"], summary="Upload a file")
async def upload_file() -> ASGIApp:
    """As OpenAI: a form with `file`, `purpose` and, if it is to go by itself, `expires_after`. It belongs to the key's role."""
    return UPLOAD  # type: ignore[return-value]


@get(PATH, guards=[needs_key], tags=["Files"], summary="List files")
async def list_files(
    request: Request[Any, Any, Any],
    limit: FileLimit = 10_000,
    order: Order = "desc",
    after: Cursor = None,
    before: Cursor = None,
    purpose: FromQuery[str | None] = None,
) -> dict[str, Any]:
    access = services_of(request).knowledge.access
    files = services_of(request).knowledge.library.files
    asked = asked_page(limit, order, after, before)
    caller = caller_of(request)
    found = await files.listed(asked, owner=access.owner(caller), key=access.uploader(caller), purpose=purpose)
    return page([file_object(one) for one in found], limit)


@get(PATH + "/{file_id:str}", guards=[needs_key], tags=["Files"], summary="One file")
async def get_file(request: Request[Any, Any, Any], file_id: FromPath[str]) -> dict[str, Any]:
    return file_object(await services_of(request).knowledge.access.file(caller_of(request), file_id))


@get(PATH + "/{file_id:str}/content", guards=[needs_key], tags=["Files"], summary="What is in a file")
async def get_file_content(request: Request[Any, Any, Any], file_id: FromPath[str]) -> Stream:
    """Byte by byte as it was uploaded."""
    knowledge = services_of(request).knowledge
    uploaded = await knowledge.access.file(caller_of(request), file_id)
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(uploaded.filename, safe='')}",
        "content-length": str(uploaded.bytes),
    }
    return Stream(knowledge.library.files.pieces(uploaded.id), media_type="application/octet-stream", headers=headers)


@delete(PATH + "/{file_id:str}", guards=[needs_key], status_code=200, tags=["Files"], summary="Delete a file")
async def delete_file(request: Request[Any, Any, Any], file_id: FromPath[str]) -> dict[str, Any]:
    """It leaves all vector stores, too."""
    knowledge = services_of(request).knowledge
    uploaded = await knowledge.access.file(caller_of(request), file_id)
    await knowledge.library.files.delete(uploaded.id)
    return deleted(uploaded.id, "file") | {"object": "file"}


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    caller = exchange_of(request).caller
    assert caller is not None
    return caller
