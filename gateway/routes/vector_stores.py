"""/v1/vector_stores: collections, in OpenAI's own API."""

from functools import partial
from typing import Any

from litestar import Request, delete, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from backends.wire import Body
from gateway.auth import needs_key
from gateway.collection_fields import StoreChange, StoreFields
from gateway.collection_objects import deleted
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.admin.pages import page
from gateway.routes.answers import body_of, read_as, services_of
from gateway.routes.files import caller_of
from gateway.routes.hot import HotRoute
from gateway.routes.paging import Cursor, Limit, Order, asked_page
from gateway.services import Services

PATH = "/v1/vector_stores"
ONE = PATH + "/{vector_store_id:str}"


@post(PATH, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Make a vector store")
async def create_store(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """As OpenAI. It belongs to the key's role; models of the configuration are not needed to search it, nor to ask about it:
    chats take `collections: [id]`."""
    fields = await read_as(request, StoreFields, needed=False)
    return await services_of(request).collection_desk.create(caller_of(request), fields)


@get(PATH, guards=[needs_key], tags=["Vector stores"], summary="List vector stores")
async def list_stores(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    order: Order = "desc",
    after: Cursor = None,
    before: Cursor = None,
) -> dict[str, Any]:
    """Those of the key's role, and those of the configuration that it may read (`declared`)."""
    services = services_of(request)
    found = await services.knowledge.access.listed(caller_of(request), asked_page(limit, order, after, before))
    return page(await services.collection_desk.all_shown(found), limit)


@get(ONE, guards=[needs_key], tags=["Vector stores"], summary="One vector store")
async def get_store(request: Request[Any, Any, Any], vector_store_id: FromPath[str]) -> dict[str, Any]:
    """By its id; one of the configuration by its name, too."""
    services = services_of(request)
    stored = await services.knowledge.access.collection(caller_of(request), vector_store_id)
    return await services.collection_desk.shown(stored)


@post(ONE, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Change a vector store")
async def change_store(request: Request[Any, Any, Any], vector_store_id: FromPath[str]) -> dict[str, Any]:
    fields = await read_as(request, StoreChange)
    return await services_of(request).collection_desk.change(caller_of(request), vector_store_id, fields)


@delete(ONE, guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Delete a vector store")
async def delete_store(request: Request[Any, Any, Any], vector_store_id: FromPath[str]) -> dict[str, Any]:
    """With all that was made of its files; the files stay."""
    id_ = await services_of(request).collection_desk.delete(caller_of(request), vector_store_id)
    return deleted(id_, "vector_store")


@post(ONE + "/reindex", guards=[needs_key], status_code=200, tags=["Vector stores"], summary="Read everything anew")
async def rebuild_store(request: Request[Any, Any, Any], vector_store_id: FromPath[str]) -> dict[str, Any]:
    """In the background; what can be found stays until each file is done."""
    await body_of(request, needed=False)
    return await services_of(request).collection_desk.rebuild(caller_of(request), vector_store_id)


@post(ONE + "/search", status_code=200, tags=["Vector stores"], summary="Search a vector store")
async def search_store(vector_store_id: FromPath[str]) -> ASGIApp:
    """As OpenAI. `retrieval` takes what a chat's does: mode, neighbours and so on."""
    work = partial(_search, vector_store_id)
    return HotRoute(f"{PATH}/{vector_store_id}/search", "vector_store_search", work)  # type: ignore[return-value]


async def _search(id_: str, services: Services, exchange: Exchange, body: Body, outlet: Outlet) -> None:
    await services.collection_desk.search(exchange, id_, body, outlet)
