"""Requests from what arrives on a connection: the half of `asgi_http1` that knows httptools, and no socket."""

from typing import Any

import httptools

from backends.asgi_cycle import Cycle, Headers
from backends.asgi_scope import target_of

MAX_HEAD_BYTES = 64 * 1024


class Reader:
    """What it finds, it tells the methods that a subclass must have."""

    def __init__(self, app_state: dict[str, Any]) -> None:
        self._app_state = app_state
        self._peers: dict[str, Any] = {}
        self._parser: Any = httptools.HttpRequestParser(self)
        self._deaf = False
        """Nothing that arrives is read any more."""
        self._url = b""
        self._headers: Headers = []
        self._in_head = False
        self._read_bytes = 0
        self._loose_bytes = 0
        """What arrived, at most, since the last whole head, piece of a body or end of a request."""
        self._incoming: Cycle | None = None
        """Whose body is arriving; it may have been answered already."""
        self._body_head = b""
        self._in_body_head = False

    def head_begins(self) -> None:
        raise NotImplementedError

    def request_begins(self, scope: dict[str, Any], headers: Headers, *, keep_alive: bool) -> Cycle | None:
        """Who shall have the body. None: no more requests, `refuse` has been called."""
        raise NotImplementedError

    def answered_request_ends(self, cycle: Cycle) -> None:
        """All of a request has arrived that was answered before."""
        raise NotImplementedError

    def refuse(self, status: int) -> None:
        """What arrives is no request that we take. From here on nothing is read (`_deaf`)."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        self._read_bytes = len(data)
        self._loose_bytes += len(data)
        while data and not self._deaf:
            try:
                self._parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                # An offer to speak another protocol (Java's client makes one) is not taken up; the request counts as it is.
                data = self._body_head + data[upgrade.args[0] :]
                self._in_body_head, self._body_head = bool(self._body_head), b""
            except httptools.HttpParserError as exc:
                if isinstance(exc, httptools.HttpParserCallbackError) and not self._deaf:
                    raise
                self.refuse(400)
        if self._loose_bytes > MAX_HEAD_BYTES:
            self.refuse(431)

    def on_message_begin(self) -> None:
        if self._in_body_head:
            return
        self._url = b""
        self._headers = []
        self._in_head = True
        self.head_begins()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what trails a body comes too late to be believed
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._in_body_head:
            self._in_body_head = False
            return
        if self._read_bytes + self._loose_bytes > MAX_HEAD_BYTES and self._size_of_head() > MAX_HEAD_BYTES:
            self.refuse(431)
        if not self._deaf:
            self._in_head = False
            self._loose_bytes = 0
            scope = self._scope()
            keep_alive = scope["http_version"] == "1.1" and self._parser.should_keep_alive()
            self._incoming = self.request_begins(scope, self._headers, keep_alive=keep_alive)
        if self._deaf:
            raise ValueError("nothing more is read")  # the only way to stop the parser
        if self._parser.should_upgrade():
            self._body_head = _head_for_body(self._headers)

    def _size_of_head(self) -> int:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        if self._incoming is not None:
            self._incoming.feed(body)

    def on_message_complete(self) -> None:
        if self._body_head or self._incoming is None:
            return
        self._loose_bytes = 0
        incoming, self._incoming = self._incoming, None
        incoming.fed()
        if incoming.answered:
            self.answered_request_ends(incoming)

    def _scope(self) -> dict[str, Any]:
        try:
            target = target_of(self._url)
        except httptools.HttpParserInvalidURLError:
            self.refuse(400)
            raise
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self._parser.get_http_version(),
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "root_path": "",
            "headers": self._headers,
            "state": self._app_state.copy(),
            **target,
            **self._peers,
        }


def _head_for_body(headers: Headers) -> bytes:
    """A head with which the parser reads the body of a request that offers an upgrade; left alone, it takes that for requests."""
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0] in (b"content-length", b"transfer-encoding")]
    return b"".join((b"POST / HTTP/1.1\r\n", *lines, b"\r\n")) if lines else b""
