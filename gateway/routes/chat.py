"""POST /v1/chat/completions and /v1/completions."""

from litestar import post
from litestar.types import ASGIApp

from backends.wire import Body
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.hot import HotRoute
from gateway.services import Services


async def generate(services: Services, exchange: Exchange, body: Body, outlet: Outlet) -> None:
    await services.pipeline.answer(exchange, body, outlet)


CHAT = HotRoute("/v1/chat/completions", "chat", generate)
COMPLETIONS = HotRoute("/v1/completions", "text_completion", generate)


@post("/v1/chat/completions", status_code=200, tags=["OpenAI"], summary="Chat completion")
async def chat() -> ASGIApp:
    """As OpenAI. `model` is any name of `GET /v1/models`; unknown fields go to the backend as they came."""
    return CHAT  # type: ignore[return-value]


@post("/v1/completions", status_code=200, tags=["OpenAI"], summary="Legacy completion")
async def completions() -> ASGIApp:
    """As OpenAI; templates and collections apply here too."""
    return COMPLETIONS  # type: ignore[return-value]
