"""The routes that carry the load, as bare ASGI: a dictionary look-up instead of a router, no handler machinery.

`app.py` puts `HotPath` in front of the framework. The framework has the same routes, for /schema and for spellings of a
path that only its router understands; there they lead to the same `HotRoute`, so there is one way to answer.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from backends.asgi import Receive, Send, read_body, send_json, until_gone
from backends.wire import Body
from gateway.auth import authenticate
from gateway.errors import explain_to
from gateway.exchange import Exchange
from gateway.services import Services

Work = Callable[[Services, Exchange, Body, Send], Awaitable[None]]
"""Answers a request whose caller and body are known; failures before the first byte leave it as exceptions."""


class HotRoute:
    """
    Args:
        operation: what the metrics call it.
    """

    def __init__(self, operation: str, work: Work) -> None:
        self._operation = operation
        self._work = work

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        services: Services = scope["services"]
        exchange: Exchange = scope["exchange"]
        exchange.operation = self._operation
        exchange.caller = authenticate(scope, services.keys)
        body = Body(
            await read_body(receive, limit_bytes=services.max_body_bytes, announced_bytes=announced_bytes(scope))
        )
        if not await until_gone(receive, send, lambda watched: self._work(services, exchange, body, watched)):
            exchange.outcome = "client_left"


class HotPath:
    """ASGI: answers POSTs to hot routes itself and hands everything else on."""

    def __init__(self, app: Any, routes: Mapping[str, HotRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        try:
            await route(scope, receive, send)
        except Exception as exc:  # noqa: BLE001 - the edge of a request, as the framework's handler is for the others
            exchange: Exchange = scope["exchange"]
            failure = explain_to(exchange, exc)
            if not exchange.head_sent:
                await send_json(send, failure.meaning.status, failure.body, exchange.headers() | failure.headers)


def announced_bytes(scope: Any) -> int:
    """The request's content-length; 0 where there is none."""
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0
