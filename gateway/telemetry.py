"""The outermost layer: an id for every request, one log line and one observation for every answer, and the last net."""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from backends.asgi import Message, Receive, Send, send_json
from gateway.bookkeeping import LEFT
from gateway.errors import HeadersTooLarge, explain, explain_to
from gateway.exchange import Exchange
from gateway.services import Services

access_log = logging.getLogger("chasqui.access")

MAX_HEAD_BYTES = 64 * 1024

CROSSING_FORTH = frozenset({b"openai-beta", b"traceparent"})
"""Of a client's headers, all that an upstream sees."""

QUIET = frozenset({"/health", "/health/ready", "/metrics"})
"""Asked every few seconds by machines; logged at debug only."""


class Telemetry:
    """ASGI around the application. `scope["exchange"]` is the request's `Exchange`, `scope["services"]` everything that was built."""

    def __init__(self, app: Any, services: Services, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.services = services
        self._app = app
        self._metrics = services.metrics
        self._clock = clock

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        crossing = {
            name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in CROSSING_FORTH
        }
        exchange = Exchange(f"req_{uuid.uuid4().hex}", scope["path"], self._clock(), crossing)
        scope["exchange"], scope["services"] = exchange, self.services
        name = (b"x-request-id", exchange.id.encode())

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status, exchange.head_sent = message["status"], True
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"x-request-id"]
                message["headers"] = [*headers, name]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            if sum(len(key) + len(value) for key, value in scope["headers"]) > MAX_HEAD_BYTES:
                failure = explain(HeadersTooLarge(MAX_HEAD_BYTES))
                await send_json(named_send, failure.meaning.status, failure.body)
            else:
                await self._app(scope, receive, named_send)
        except Exception as exc:  # noqa: BLE001 - the last net: what slipped through everything must not end the connection's task
            failure = explain_to(exchange, exc)
            if not exchange.head_sent:
                await send_json(named_send, failure.meaning.status, failure.body)
        finally:
            self._metrics.in_flight.dec()
            self._observe(scope["method"], exchange)

    def _observe(self, method: str, exchange: Exchange) -> None:
        seconds = self._clock() - exchange.started_s
        status = exchange.status or LEFT
        level = logging.DEBUG if exchange.path in QUIET else logging.INFO
        access_log.log(level, "%s", _line(method, exchange, status, seconds))
        if exchange.operation == "other":
            return
        outcome = exchange.outcome if exchange.status else "client_left"
        self._metrics.request(
            operation=exchange.operation,
            model=exchange.model,
            backend=exchange.backend,
            status=status,
            outcome=outcome,
            seconds=seconds,
            error=exchange.error,
        )
        self._metrics.tokens(
            model=exchange.model,
            input_tokens=exchange.usage.prompt_tokens,
            output_tokens=exchange.usage.completion_tokens,
        )


def _line(method: str, exchange: Exchange, status: int, seconds: float) -> str:
    """One line, fields separated by spaces; a path is a client's and is written without control characters."""
    path = exchange.path[:200].encode("unicode_escape").decode()
    parts = [method, path, str(status), exchange.id, f"{seconds * 1000:.0f}ms"]
    if exchange.caller is not None:
        parts.append(f"key={exchange.caller.key_id}")
    if exchange.backend is not None:
        parts.append(f"model={exchange.model} backend={exchange.backend}")
        parts.append(f"tokens={exchange.usage.prompt_tokens}+{exchange.usage.completion_tokens} {exchange.outcome}")
    if exchange.error:
        parts.append(f"error={exchange.error}")
    return " ".join(parts)
