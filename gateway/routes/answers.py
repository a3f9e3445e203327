"""What the framework's handlers need of a request."""

from typing import Any, TypeVar, cast

import msgspec
from litestar import Request

from backends.asgi import Receive, read_body
from backends.errors import InvalidRequest
from backends.wire import Body
from gateway.exchange import Exchange
from gateway.routes.hot import announced_bytes
from gateway.services import Services
from policies.audit import Actor

T = TypeVar("T")


def services_of(request: Request[Any, Any, Any]) -> Services:
    services: Services = request.scope["services"]  # type: ignore[typeddict-item]
    return services


def exchange_of(request: Request[Any, Any, Any]) -> Exchange:
    exchange: Exchange = request.scope["exchange"]  # type: ignore[typeddict-item]
    return exchange


def actor_of(request: Request[Any, Any, Any]) -> Actor:
    """For the audit."""
    exchange = exchange_of(request)
    return Actor(exchange.caller.key_id if exchange.caller is not None else "", exchange.id)


async def body_of(request: Request[Any, Any, Any]) -> Body:
    """
    Raises:
        BodyTooLarge, RequestTimeout, InvalidRequest, ClientGone
    """
    return Body(
        await read_body(
            cast(Receive, request.receive),
            limit_bytes=services_of(request).max_body_bytes,
            announced_bytes=announced_bytes(dict(request.scope["headers"])),
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
