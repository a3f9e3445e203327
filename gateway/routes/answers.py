"""A pipeline's pieces, onto the wire; and bodies off it."""

from contextlib import aclosing
from typing import Any, TypeVar, cast

import msgspec
from litestar import Request
from litestar.types import ASGIApp

from backends.asgi import Receive, Send, read_body, send_start, until_gone
from backends.errors import InvalidRequest
from backends.wire import Body
from gateway.exchange import Exchange
from gateway.pipeline import Head, Piece, Pipeline
from gateway.services import Services

T = TypeVar("T")


def services_of(request: Request[Any, Any, Any]) -> Services:
    services: Services = request.app.state.services
    return services


def exchange_of(request: Request[Any, Any, Any]) -> Exchange:
    exchange: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
    return exchange


async def body_of(request: Request[Any, Any, Any]) -> Body:
    """
    Raises:
        BodyTooLarge, RequestTimeout, InvalidRequest, ClientGone
    """
    announced = request.headers.get("content-length", "0")
    return Body(
        await read_body(
            cast(Receive, request.receive),
            limit_bytes=services_of(request).max_body_bytes,
            announced_bytes=int(announced) if announced.isdigit() else 0,
        )
    )


async def read_as(request: Request[Any, Any, Any], type_: type[T]) -> T:
    """A body of our own shape; unknown fields are refused by name."""
    body = await body_of(request)
    try:
        return msgspec.json.decode(body.raw, type=type_)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).partition(" - at `$.")
        raise InvalidRequest(
            f"{what}{f' (in {where.rstrip(chr(96))})' if where else ''}", param=where.rstrip("`") or None
        ) from None


def generated(pipeline: Pipeline, exchange: Exchange, body: Body) -> ASGIApp:
    """The answer to a request that generates. Failures before the first byte leave as exceptions."""

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        async def work(watched: Send) -> None:
            async with aclosing(pipeline.answer(exchange, body)) as pieces:
                async for piece in pieces:
                    match piece:
                        case Head():
                            await send_start(watched, 200, piece.headers)
                        case Piece():
                            await watched(
                                {"type": "http.response.body", "body": piece.raw, "more_body": not piece.last}
                            )

        if not await until_gone(receive, send, work):
            exchange.outcome = "client_left"

    return app  # type: ignore[return-value]
