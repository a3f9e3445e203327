"""The gateway's end of a client's connection, with our shape for what is refused before any application sees it."""

import logging

import msgspec

from backends.asgi import RequestTimeout
from backends.asgi_cycle import Headers
from backends.asgi_http1 import MAX_HEAD_BYTES, HttpProtocol
from gateway.errors import FRAMEWORK, MEANINGS, HeadersTooLarge, error_body
from gateway.exchange import new_request_id

access_log = logging.getLogger("chasqui.access")


class Protocol(HttpProtocol):
    def refusal(self, status: int) -> tuple[bytes, Headers]:
        meaning, words = {
            400: (FRAMEWORK[400], "This is not a valid HTTP/1.1 request."),
            408: (MEANINGS[RequestTimeout], "The request's head did not arrive in time."),
            431: (MEANINGS[HeadersTooLarge], str(HeadersTooLarge(MAX_HEAD_BYTES))),
        }[status]
        name = new_request_id()
        access_log.info("%s %s: %s", status, name, words)
        return msgspec.json.encode(error_body(words, meaning)), [(b"x-request-id", name.encode())]
