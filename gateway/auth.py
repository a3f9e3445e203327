"""Bearer token -> caller, and whether its role names the path. One dictionary look-up, no database."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from gateway.exchange import Exchange
from policies.errors import KeyUnknown, PathForbidden, PathHidden
from policies.keys import Keys
from policies.roles import Caller


def authenticate(scope: Any, keys: Keys) -> Caller:
    """
    Raises:
        KeyUnknown, PathForbidden (under /admin), PathHidden (elsewhere)
    """
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, secret = header.decode("latin-1").partition(" ")
    if kind.lower() != "bearer" or not secret:
        raise KeyUnknown
    caller = keys.authenticate(secret.strip())
    path = scope["path"]
    if not caller.may("paths", path):
        raise PathForbidden(path) if path.startswith("/admin") else PathHidden(path)
    return caller


async def needs_key(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Litestar guard: the exchange knows its caller from here on. Async, because Litestar sends sync ones to a thread."""
    exchange: Exchange = connection.scope["exchange"]  # type: ignore[typeddict-item]
    exchange.caller = authenticate(connection.scope, connection.app.state.services.keys)
