"""uvicorn's HTTP protocol, with our shape for what it refuses before any application sees it."""

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import FRAMEWORK, error_body


class Protocol(HttpToolsProtocol):
    def send_400_response(self, msg: str) -> None:
        """Bytes that are no HTTP request: one last answer, and the connection ends."""
        body = msgspec.json.encode(error_body("This is not a valid HTTP/1.1 request.", FRAMEWORK[400]))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
