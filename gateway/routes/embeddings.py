"""POST /v1/embeddings."""

from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from backends.asgi import Receive, Send, send_whole, until_gone
from gateway.auth import needs_key
from gateway.routes.answers import body_of, exchange_of, services_of


@post("/v1/embeddings", guards=[needs_key], status_code=200, tags=["OpenAI"], summary="Embeddings")
async def embeddings(request: Request[Any, Any, Any]) -> ASGIApp:
    """As OpenAI. `x-chasqui-cache` says hit, partial or miss."""
    exchange = exchange_of(request)
    exchange.operation = "embeddings"
    service, body = services_of(request).embeddings, await body_of(request)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        async def work(watched: Send) -> None:
            answer, headers = await service.answer(exchange, body)
            await send_whole(watched, 200, answer, {"content-type": "application/json"} | headers)

        if not await until_gone(receive, send, work):
            exchange.outcome = "client_left"

    return app  # type: ignore[return-value]
