"""Bearer token -> caller, and whether its role names the path. One dictionary look-up, no database."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from backends.asgi import Scope
from gateway.exchange import Exchange
from gateway.services import Services
from policies.errors import KeyUnknown, PathForbidden, PathHidden
from policies.roles import Caller


def authenticate(authorization: bytes, path: str, scope: Scope) -> Caller:
    """
    Args:
        authorization: the header's value, empty where there is none.

    Raises:
        KeyUnknown, KeysThrottled, PathForbidden (under /admin), PathHidden (elsewhere)
    """
    services: Services = scope["services"]
    kind, _, secret = authorization.decode("latin-1").partition(" ")
    if kind.lower() != "bearer" or not secret:
        raise KeyUnknown
    address = (scope.get("client") or ("", 0))[0]
    secret = secret.strip()
    caller = services.house.failed_keys.judged(address, secret, services.keys.find(secret))
    if not caller.may("paths", path):
        raise PathForbidden(path) if path.startswith("/admin") else PathHidden(path)
    return caller


async def needs_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar guard: the exchange knows its caller from here on. Async, because Litestar sends sync ones to a thread."""
    scope: Any = connection.scope
    exchange: Exchange = scope["exchange"]
    authorization = dict(scope["headers"]).get(b"authorization", b"")
    path = "/" + scope["path"].lstrip("/")  # the router reads `//admin` as `/admin`
    exchange.caller = authenticate(authorization, path, scope)
