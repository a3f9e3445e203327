"""POST /v1/embeddings/files, and what it has made once more under its id."""

import asyncio
from typing import Any

from litestar import Request, Response, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.auth import needs_key
from gateway.embedding_files import PATH
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.answers import exchange_of, services_of
from gateway.routes.uploads import Headers, UploadRoute
from gateway.services import Services
from gateway.upload import Upload


async def _embed(services: Services, exchange: Exchange, upload: Upload, outlet: Outlet, headers: Headers) -> None:
    events = b"text/event-stream" in headers.get(b"accept", b"").lower()
    await services.embedding_files.answer(exchange, upload, outlet, events=events)


EMBED_FILE = UploadRoute(PATH, "embedding_file", _embed, limit_bytes=lambda services: services.max_body_bytes)


@post(PATH, status_code=200, tags=["Embeddings"], summary="Embed every sentence of a file")
async def embed_file() -> ASGIApp:
    """A form with `file`, `model` and `json_format` (pandas' orientations, or parquet) -> a zip. With `accept: text/event-stream`
    progress, and at last where to fetch it. The same file answers at once."""
    return EMBED_FILE  # type: ignore[return-value]


@get(PATH + "/{file_id:str}", guards=[needs_key], tags=["Embeddings"], summary="Fetch what was made of a file")
async def get_embedded_file(request: Request[Any, Any, Any], file_id: FromPath[str]) -> Response[bytes]:
    """For keys that share the embedding cache with the one that had it made."""
    caller = exchange_of(request).caller
    assert caller is not None
    made = await asyncio.to_thread(services_of(request).embedding_files.fetch, caller, file_id)
    headers = {"content-disposition": f'attachment; filename="{file_id}.zip"'}
    return Response(made, media_type="application/zip", headers=headers)
