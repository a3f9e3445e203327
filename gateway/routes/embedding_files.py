"""POST /v1/embeddings/files, and what it has made once more under its id."""

import asyncio
from contextlib import closing
from typing import Any

from litestar import Request, Response, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from backends.asgi import Receive, Send, until_gone
from gateway.auth import authenticate, needs_key
from gateway.embedding_files import PATH
from gateway.errors import GatewayStopping
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.answers import exchange_of, services_of
from gateway.routes.hot import announced_bytes
from gateway.services import Services
from gateway.upload import read_upload


class FilesRoute:
    """As `HotRoute`, for a form."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        services: Services = scope["services"]
        exchange: Exchange = scope["exchange"]
        exchange.operation, exchange.path = "embedding_file", PATH
        headers = scope["peer"].fields
        outlet = Outlet(exchange, scope, send)
        try:
            exchange.caller = authenticate(headers.get(b"authorization", b""), PATH, scope)
            upload = await read_upload(
                receive,
                headers,
                limit_bytes=services.max_body_bytes,
                announced_bytes=announced_bytes(headers),
                folder=services.loaded.home,
            )
            with closing(upload):
                events = b"text/event-stream" in headers.get(b"accept", b"").lower()
                work = services.embedding_files.answer(exchange, upload, outlet, events=events)
                if not await until_gone(scope, work):
                    exchange.outcome = "client_left"
        except asyncio.CancelledError:
            await outlet.failure(GatewayStopping())
            raise
        except Exception as exc:  # noqa: BLE001 - the edge of a request, as in `hot.py`
            await outlet.failure(exc)


@post(PATH, status_code=200, tags=["Embeddings"], summary="Embed every sentence of a file")
async def embed_file() -> ASGIApp:
    """A form with `file`, `model` and `json_format` (pandas' orientations, or parquet) -> a zip. With `accept: text/event-stream`
    progress, and at last where to fetch it. The same file answers at once."""
    return FilesRoute()  # type: ignore[return-value]


@get(PATH + "/{file_id:str}", guards=[needs_key], tags=["Embeddings"], summary="Fetch what was made of a file")
async def get_embedded_file(request: Request[Any, Any, Any], file_id: FromPath[str]) -> Response[bytes]:
    """For keys that share the embedding cache with the one that had it made."""
    caller = exchange_of(request).caller
    assert caller is not None
    made = await asyncio.to_thread(services_of(request).embedding_files.fetch, caller, file_id)
    headers = {"content-disposition": f'attachment; filename="{file_id}.zip"'}
    return Response(made, media_type="application/zip", headers=headers)
