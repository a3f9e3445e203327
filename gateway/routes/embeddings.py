"""POST /v1/embeddings."""

from litestar import post
from litestar.types import ASGIApp

from backends.wire import Body
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.hot import HotRoute
from gateway.services import Services


async def embed(services: Services, exchange: Exchange, body: Body, outlet: Outlet) -> None:
    await services.embeddings.answer(exchange, body, outlet)


EMBEDDINGS = HotRoute("/v1/embeddings", "embeddings", embed)


@post("/v1/embeddings", status_code=200, tags=["OpenAI"], summary="Embeddings")
async def embeddings() -> ASGIApp:
    """As OpenAI. `x-chasqui-cache` says hit, partial or miss."""
    return EMBEDDINGS  # type: ignore[return-value]
