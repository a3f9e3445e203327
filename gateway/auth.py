"""Bearer token -> caller, and whether its role names the path. One dictionary look-up, no database."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gateway.exchange import Exchange
from gateway.services import Services
from policies.errors import KeyUnknown, PathForbidden, PathHidden
from policies.keys import Keys
from policies.roles import Caller


def authenticate(authorization: bytes, path: str, keys: Keys) -> Caller:
    """
    Args:
        authorization: the header's value, empty where there is none.

    Raises:
        KeyUnknown, PathForbidden (under /admin), PathHidden (elsewhere)
    """
    kind, _, secret = authorization.decode("latin-1").partition(" ")
    if kind.lower() != "bearer" or not secret:
        raise KeyUnknown
    caller = keys.authenticate(secret.strip())
    if not caller.may("paths", path):
        raise PathForbidden(path) if path.startswith("/admin") else PathHidden(path)
    return caller


async def needs_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar guard: the exchange knows its caller from here on. Async, because Litestar sends sync ones to a thread."""
    exchange: Exchange = connection.scope["exchange"]  # type: ignore[typeddict-item]
    services: Services = connection.scope["services"]  # type: ignore[typeddict-item]
    authorization = dict(connection.scope["headers"]).get(b"authorization", b"")
    exchange.caller = authenticate(authorization, connection.scope["path"], services.keys)
