"""What the framework's handlers need of a request."""

from typing import Any, TypeVar, cast

from litestar import Request

from backends.asgi import Receive, read_body
from backends.wire import Body
from gateway.bodies import read_struct
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


async def body_of(request: Request[Any, Any, Any], *, needed: bool = True) -> Body:
    """
    Args:
        needed: False: none at all is as good as `{}`.

    Raises:
        BodyTooLarge, RequestTimeout, InvalidRequest, ClientGone
    """
    raw = await read_body(
        cast(Receive, request.receive),
        limit_bytes=services_of(request).max_body_bytes,
        announced_bytes=announced_bytes(dict(request.scope["headers"])),
    )
    return Body(raw if raw or needed else b"{}")


async def read_as(request: Request[Any, Any, Any], type_: type[T], *, needed: bool = True) -> T:
    """A body of our own shape; unknown fields are refused by name."""
    return read_struct(await body_of(request, needed=needed), type_)
