"""A route that takes a form with one file: as `HotRoute`, which takes JSON."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from typing import Any

from backends.asgi import Receive, Send, until_gone
from gateway.auth import authenticate
from gateway.errors import GatewayStopping
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.hot import announced_bytes
from gateway.services import Services
from gateway.upload import Upload, read_upload

Headers = Mapping[bytes, bytes]
Work = Callable[[Services, Exchange, Upload, Outlet, Headers], Awaitable[None]]
"""Answers a request whose caller and file are known; failures before the first byte leave it as exceptions."""


class UploadRoute:
    """
    Args:
        path: its name.
        operation: what the metrics call it.
        limit_bytes: of the whole form.
    """

    def __init__(self, path: str, operation: str, work: Work, *, limit_bytes: Callable[[Services], int]) -> None:
        self._path = path
        self._operation = operation
        self._work = work
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        services: Services = scope["services"]
        exchange: Exchange = scope["exchange"]
        exchange.operation, exchange.path = self._operation, self._path
        headers: Headers = scope["peer"].fields
        outlet = Outlet(exchange, scope, send)
        try:
            exchange.caller = authenticate(headers.get(b"authorization", b""), self._path, scope)
            upload = await read_upload(
                receive,
                headers,
                limit_bytes=self._limit_bytes(services),
                announced_bytes=announced_bytes(headers),
                folder=services.loaded.home,
            )
            with closing(upload):
                if not await until_gone(scope, self._work(services, exchange, upload, outlet, headers)):
                    exchange.outcome = "client_left"
        except asyncio.CancelledError:
            await outlet.failure(GatewayStopping())
            raise
        except Exception as exc:  # noqa: BLE001 - the edge of a request, as in `hot.py`
            await outlet.failure(exc)
