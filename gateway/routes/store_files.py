"""/v1/vector_stores/{id}/files and …/file_batches: what is in a vector store."""

from typing import Annotated, Any, Literal

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, QueryParameter

from gateway.auth import needs_key
from gateway.collection_fields import AttributeFields, BatchFields, MemberFields
from gateway.collection_objects import content_page, deleted, member_object
from gateway.routes.admin.pages import page
from gateway.routes.answers import body_of, read_as, services_of
from gateway.routes.files import caller_of
from gateway.routes.paging import Cursor, Limit, Order, asked_page
from gateway.routes.vector_stores import ONE

FILES = ONE + "/files"
FILE = FILES + "/{file_id:str}"
BATCHES = ONE + "/file_batches"
BATCH = BATCHES + "/{batch_id:str}"

POLL_AFTER_MS = 200
"""What the SDK's helpers wait between two looks."""

Status = Annotated[Literal["in_progress", "completed", "failed", "cancelled"] | None, QueryParameter(name="filter")]


@post(FILES, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Attach a file")
async def attach_file(request: Request[Any, Any, Any], vector_store_id: FromPath[str]) -> dict[str, Any]:
    """It is read in the background. One that is there already is read anew, and found as it was until then."""
    fields = await read_as(request, MemberFields)
    return await services_of(request).collection_desk.attach(caller_of(request), vector_store_id, fields)


@get(FILES, guards=[needs_key], tags=["Vector stores"], summary="List a vector store's files")
async def list_store_files(
    request: Request[Any, Any, Any],
    vector_store_id: FromPath[str],
    limit: Limit = 20,
    order: Order = "desc",
    after: Cursor = None,
    before: Cursor = None,
    status: Status = None,
) -> dict[str, Any]:
    services = services_of(request)
    stored = await services.knowledge.access.collection(caller_of(request), vector_store_id)
    asked = asked_page(limit, order, after, before)
    return page(await services.collection_desk.members(stored, asked, status=status), limit)


@get(FILE, guards=[needs_key], tags=["Vector stores"], summary="One file of a vector store")
async def get_store_file(
    request: Request[Any, Any, Any], vector_store_id: FromPath[str], file_id: FromPath[str]
) -> Response[dict[str, Any]]:
    services = services_of(request)
    stored = await services.knowledge.access.collection(caller_of(request), vector_store_id)
    return polled(member_object(await services.collection_desk.member(stored, file_id), stored))


@post(FILE, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Change a file's attributes")
async def change_store_file(
    request: Request[Any, Any, Any], vector_store_id: FromPath[str], file_id: FromPath[str]
) -> dict[str, Any]:
    """They count for the next search."""
    fields = await read_as(request, AttributeFields)
    desk = services_of(request).collection_desk
    return await desk.set_attributes(caller_of(request), vector_store_id, file_id, fields.attributes)


@delete(FILE, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Take a file out")
async def detach_file(
    request: Request[Any, Any, Any], vector_store_id: FromPath[str], file_id: FromPath[str]
) -> dict[str, Any]:
    """The file itself stays."""
    await services_of(request).collection_desk.detach(caller_of(request), vector_store_id, file_id)
    return deleted(file_id, "vector_store.file")


@get(FILE + "/content", guards=[needs_key], tags=["Vector stores"], summary="What was read of a file")
async def get_store_file_content(
    request: Request[Any, Any, Any], vector_store_id: FromPath[str], file_id: FromPath[str]
) -> dict[str, Any]:
    """Its chunks, in order."""
    services = services_of(request)
    stored = await services.knowledge.access.collection(caller_of(request), vector_store_id)
    return content_page(await services.collection_desk.content(stored, file_id))


@post(BATCHES, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Attach many files")
async def attach_files(request: Request[Any, Any, Any], vector_store_id: FromPath[str]) -> dict[str, Any]:
    fields = await read_as(request, BatchFields)
    return await services_of(request).collection_desk.attach_batch(caller_of(request), vector_store_id, fields)


@get(BATCH, guards=[needs_key], tags=["Vector stores"], summary="How far a batch is")
async def get_batch(
    request: Request[Any, Any, Any], vector_store_id: FromPath[str], batch_id: FromPath[str]
) -> Response[dict[str, Any]]:
    services = services_of(request)
    stored = await services.knowledge.access.collection(caller_of(request), vector_store_id)
    return polled(await services.collection_desk.batch(stored, batch_id))


@post(BATCH + "/cancel", guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Stop a batch")
async def cancel_batch(
    request: Request[Any, Any, Any], vector_store_id: FromPath[str], batch_id: FromPath[str]
) -> dict[str, Any]:
    """What is done stays; what is not, is not done any more."""
    await body_of(request, needed=False)
    return await services_of(request).collection_desk.cancel_batch(caller_of(request), vector_store_id, batch_id)


@get(BATCH + "/files", guards=[needs_key], tags=["Vector stores"], summary="List a batch's files")
async def list_batch_files(
    request: Request[Any, Any, Any],
    vector_store_id: FromPath[str],
    batch_id: FromPath[str],
    limit: Limit = 20,
    order: Order = "desc",
    after: Cursor = None,
    before: Cursor = None,
    status: Status = None,
) -> dict[str, Any]:
    services = services_of(request)
    stored = await services.knowledge.access.collection(caller_of(request), vector_store_id)
    asked = asked_page(limit, order, after, before)
    return page(await services.collection_desk.members(stored, asked, status=status, batch=batch_id), limit)


def polled(told: dict[str, Any]) -> Response[dict[str, Any]]:
    headers = {"openai-poll-after-ms": str(POLL_AFTER_MS)} if told["status"] == "in_progress" else {}
    return Response(told, headers=headers)
