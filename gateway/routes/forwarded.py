"""POST /v1/…: what `backend.paths` names, handed on to the model's upstream."""

import asyncio
import re
from typing import Any

from backends.asgi import Receive, Send, until_gone
from backends.errors import InvalidRequest
from backends.wire import Body
from gateway.auth import authenticate
from gateway.errors import GatewayStopping
from gateway.exchange import Exchange
from gateway.form import Form, read_form
from gateway.forwarding import Content, FormContent, JsonContent
from gateway.outlet import Outlet
from gateway.routes.hot import announced_bytes, body_of
from gateway.services import Services
from policies.errors import PathHidden

PLAIN = re.compile(rb"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
"""Nothing encoded, no empty or dot segments: what is checked here is what goes upstream."""


async def forwarded(scope: Any, receive: Receive, send: Send) -> None:
    exchange: Exchange = scope["exchange"]
    exchange.operation = "forward"
    outlet = Outlet(exchange, scope, send)
    try:
        await _answer(scope, receive, outlet)
    except asyncio.CancelledError:
        await outlet.failure(GatewayStopping())
        raise
    except Exception as exc:  # noqa: BLE001 - the edge of a request, as in `hot.py`
        await outlet.failure(exc)
        if exchange.head_sent and not outlet.ended:
            scope["peer"].break_off()  # half an answer must not look like a whole one


async def _answer(scope: Any, receive: Receive, outlet: Outlet) -> None:
    services: Services = scope["services"]
    exchange: Exchange = scope["exchange"]
    headers = scope["peer"].fields
    exchange.caller = authenticate(headers.get(b"authorization", b""), scope["path"], scope)
    if not PLAIN.fullmatch(scope["raw_path"]):
        raise PathHidden(scope["path"][:200])
    kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    form: Form | None = None
    try:
        content: Content
        if kind == b"multipart/form-data":
            form = await read_form(
                receive,
                headers,
                limit_bytes=services.max_body_bytes,
                announced_bytes=announced_bytes(headers),
                folder=services.loaded.home,
            )
            content = FormContent(form)
        elif kind == b"application/json":
            content = JsonContent(Body(await body_of(scope, headers, receive, services.max_body_bytes)), scope["path"])
        else:
            raise InvalidRequest("the body must be application/json or multipart/form-data.")
        if not await until_gone(scope, services.forwarding.answer(exchange, content, outlet)):
            exchange.outcome = "client_left"
    finally:
        if form is not None:
            form.close()
