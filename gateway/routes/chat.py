"""POST /v1/chat/completions and /v1/completions."""

from typing import Any

from litestar import Request, post
from litestar.types import ASGIApp

from gateway.auth import needs_key
from gateway.routes.answers import body_of, exchange_of, generated, services_of


@post("/v1/chat/completions", guards=[needs_key], status_code=200, tags=["OpenAI"], summary="Chat completion")
async def chat(request: Request[Any, Any, Any]) -> ASGIApp:
    """As OpenAI. `model` is any name of `GET /v1/models`; unknown fields go to the backend as they came."""
    exchange = exchange_of(request)
    exchange.operation = "chat"
    return generated(services_of(request).pipeline, exchange, await body_of(request))


@post("/v1/completions", guards=[needs_key], status_code=200, tags=["OpenAI"], summary="Legacy completion")
async def completions(request: Request[Any, Any, Any]) -> ASGIApp:
    """As OpenAI; templates and collections apply here too."""
    exchange = exchange_of(request)
    exchange.operation = "text_completion"
    return generated(services_of(request).pipeline, exchange, await body_of(request))
