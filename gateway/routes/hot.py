"""The routes that carry the load, as bare ASGI: a dictionary look-up instead of a router, no handler machinery.

`app.py` puts `HotPath` in front of the framework. The framework has the same routes, for /schema and for spellings of a
path that only its router understands; there they lead to the same `HotRoute`, so there is one way to answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from backends.asgi import BodyTooLarge, Message, Receive, Send, read_body, until_gone
from backends.wire import Body
from gateway.auth import authenticate
from gateway.errors import GatewayStopping
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.services import Services

Work = Callable[[Services, Exchange, Body, Outlet], Awaitable[None]]
"""Answers a request whose caller and body are known; failures before the first byte leave it as exceptions."""


class HotRoute:
    """
    Args:
        path: its only name; a router may find it by other spellings, and they mean this one everywhere behind it.
        operation: what the metrics call it.
    """

    def __init__(self, path: str, operation: str, work: Work) -> None:
        self.path = path
        self._operation = operation
        self._work = work

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        services: Services = scope["services"]
        exchange: Exchange = scope["exchange"]
        exchange.operation, exchange.path = self._operation, self.path
        headers = scope["peer"].fields
        outlet = Outlet(exchange, scope, send)
        try:
            exchange.caller = authenticate(headers.get(b"authorization", b""), self.path, scope)
            body = Body(await body_of(scope, headers, receive, services.max_body_bytes))
            if not await until_gone(scope, self._work(services, exchange, body, outlet)):
                exchange.outcome = "client_left"
        except asyncio.CancelledError:
            await outlet.failure(GatewayStopping())
            raise
        except Exception as exc:  # noqa: BLE001 - the edge of a request, as the framework's handler is for the others
            await outlet.failure(exc)


async def body_of(scope: Any, headers: Mapping[bytes, bytes], receive: Receive, limit_bytes: int) -> bytes:
    """A body that arrived with its head is taken as it is; `read_body` keeps an eye on the others."""
    announced = announced_bytes(headers)
    if scope["peer"].body_arrived and announced <= limit_bytes:
        body: bytes = (await receive())["body"]
        if len(body) <= limit_bytes:
            return body
        raise BodyTooLarge(limit_bytes)
    return await read_body(receive, limit_bytes=limit_bytes, announced_bytes=announced)


class HotPath:
    """ASGI: answers POSTs to hot routes itself, gives those that a backend gets to `forwarded`, hands everything else on."""

    def __init__(self, app: Any, routes: Iterable[HotRoute], forwarded: Any) -> None:
        self._app = app
        self._forwarded = forwarded
        self._routes = {route.path: route for route in routes}

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._routes.get(scope["path"])
        if route is not None and scope["method"] == "POST":
            await route(scope, receive, send)
        elif scope["method"] == "POST" and scope["services"].forwarding.knows(scope["path"]):
            await self._forwarded(scope, receive, send)
        else:
            await self._app(scope, receive, _observed(scope["exchange"], send))


def _observed(exchange: Exchange, send: Send) -> Send:
    """`send` of the framework's answers: they carry the request's id, and the exchange knows their status."""
    name = (b"x-request-id", exchange.id.encode())

    async def observed_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status, exchange.head_sent = message["status"], True
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
            message["headers"] = [*headers, name]
        await send(message)

    return observed_send


def announced_bytes(headers: Mapping[bytes, bytes]) -> int:
    """The request's content-length; 0 where there is none."""
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
