"""The outermost layer: an id for every request, one log line and one observation for every answer, and the last net."""

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from backends.asgi import Receive, Send
from gateway.errors import explain_to
from gateway.exchange import Exchange, new_request_id
from gateway.journal_lines import LEFT
from gateway.services import Services

CROSSING_FORTH = (b"openai-beta", b"traceparent")
"""Of a client's headers, all that an upstream sees."""


CACHE_CONTROL = b"cache-control"
ANSWER_CACHE = b"x-chasqui-answer-cache"
TIMING = b"x-chasqui-timing"
"""A request that has it gets a `server-timing` header back, which browsers and tracers show."""


class Telemetry:
    """ASGI around the application. `scope["exchange"]` is the request's `Exchange`, `scope["services"]` everything that was built."""

    def __init__(self, app: Any, services: Services, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.services = services
        self.reload: Callable[[], Coroutine[Any, Any, bool]] = nothing_to_reload
        """Takes a changed configuration over; says whether it could."""
        self._app = app
        self._metrics = services.metrics
        self._log = services.house.access_log
        self._clock = clock

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fields = scope["peer"].fields
        exchange = Exchange(new_request_id(), scope["path"], self._clock(), _crossing(fields))
        exchange.timing = TIMING in fields
        exchange.cache_control = fields.get(CACHE_CONTROL, b"")
        exchange.answer_wanted = fields.get(ANSWER_CACHE, b"").lower() == b"on"
        services = self.services
        scope["exchange"], scope["services"] = exchange, services
        services.requests.count += 1
        self._metrics.in_flight += 1
        try:
            await self._app(scope, receive, send)
        except Exception as exc:
            explain_to(exchange, exc)
            raise
        finally:
            services.requests.count -= 1
            self._metrics.in_flight -= 1
            self._observe(scope["method"], exchange)

    def _observe(self, method: str, exchange: Exchange) -> None:
        seconds = self._clock() - exchange.started_s
        status = exchange.status or LEFT
        self._log.add(method, exchange, status, seconds)
        if exchange.operation != "other":
            self._metrics.observe(exchange, status, seconds)


async def nothing_to_reload() -> bool:
    return False


def _crossing(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): fields[name].decode("latin-1") for name in CROSSING_FORTH if name in fields}
