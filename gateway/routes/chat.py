"""POST /v1/chat/completions and /v1/completions."""

from contextlib import aclosing

from litestar import post
from litestar.types import ASGIApp

from backends.asgi import Send, send_start
from backends.wire import Body
from gateway.exchange import Exchange
from gateway.pipeline import Head, Piece
from gateway.routes.hot import HotRoute
from gateway.services import Services


async def generate(services: Services, exchange: Exchange, body: Body, send: Send) -> None:
    """A pipeline's pieces, onto the wire."""
    async with aclosing(services.pipeline.answer(exchange, body)) as pieces:
        async for piece in pieces:
            match piece:
                case Head():
                    await send_start(send, 200, piece.headers)
                case Piece():
                    await send({"type": "http.response.body", "body": piece.raw, "more_body": not piece.last})


CHAT = HotRoute("chat", generate)
COMPLETIONS = HotRoute("text_completion", generate)


@post("/v1/chat/completions", status_code=200, tags=["OpenAI"], summary="Chat completion")
async def chat() -> ASGIApp:
    """As OpenAI. `model` is any name of `GET /v1/models`; unknown fields go to the backend as they came."""
    return CHAT  # type: ignore[return-value]


@post("/v1/completions", status_code=200, tags=["OpenAI"], summary="Legacy completion")
async def completions() -> ASGIApp:
    """As OpenAI; templates and collections apply here too."""
    return COMPLETIONS  # type: ignore[return-value]
