"""The way out of an answer whose route is ours and not the framework's: what goes onto the wire, the exchange knows of."""

from collections.abc import Mapping

from backends.asgi import Scope, Send, send_json
from gateway.errors import explain_to
from gateway.exchange import Exchange


class Outlet:
    """
    Args:
        scope: of `backends.asgi_http1`; its `peer` is the client.
    """

    def __init__(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        self._exchange = exchange
        self._peer = scope["peer"]
        self._send = send
        self.ended = False
        """The last piece is on its way; there is nothing more to say."""

    @property
    def gone(self) -> bool:
        """The client has left. Work that is cancelled otherwise is cancelled because the gateway stops."""
        left: bool = self._peer.gone
        return left

    async def start(self, headers: Mapping[str, str]) -> None:
        """Status 200 and the head; what the exchange knows of the answer goes with it."""
        await self._start(200, headers)

    async def piece(self, raw: bytes, *, last: bool) -> None:
        self.ended = last
        await self._send({"type": "http.response.body", "body": raw, "more_body": not last})

    async def whole(self, body: bytes, headers: Mapping[str, str]) -> None:
        exchange = self._exchange
        exchange.status = 200
        exchange.head_sent = self.ended = True
        await self._peer.send_whole(200, {**headers, **exchange.headers()}, body)

    async def failure(self, exc: Exception) -> None:
        """The failure's own status and words, where nothing has gone out yet; after that there is nothing to say here."""
        exchange = self._exchange
        failure = explain_to(exchange, exc)
        if not exchange.head_sent:
            self.ended = True
            exchange.status, exchange.head_sent = failure.meaning.status, True
            await send_json(self._send, failure.meaning.status, failure.body, exchange.headers() | failure.headers)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        exchange = self._exchange
        exchange.status, exchange.head_sent = status, True
        every = {**headers, **exchange.headers()}
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
