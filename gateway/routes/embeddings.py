"""POST /v1/embeddings."""

from litestar import post
from litestar.types import ASGIApp

from backends.asgi import Send, send_whole
from backends.wire import Body
from gateway.exchange import Exchange
from gateway.routes.hot import HotRoute
from gateway.services import Services


async def embed(services: Services, exchange: Exchange, body: Body, send: Send) -> None:
    answer, headers = await services.embeddings.answer(exchange, body)
    await send_whole(send, 200, answer, {"content-type": "application/json"} | headers)


EMBEDDINGS = HotRoute("embeddings", embed)


@post("/v1/embeddings", status_code=200, tags=["OpenAI"], summary="Embeddings")
async def embeddings() -> ASGIApp:
    """As OpenAI. `x-chasqui-cache` says hit, partial or miss."""
    return EMBEDDINGS  # type: ignore[return-value]
