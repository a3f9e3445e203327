"""A server on loopback that plays the hub, and any other place that files come from: it can be asked to misbehave."""

import hashlib
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NOTHING = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
"""A GGUF file with neither metadata nor tensors: the least that is whole."""
CONTENT = NOTHING + bytes(range(256)) * 4000
"""About a megabyte: several reads."""
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Asked:
    path: str
    range: str | None
    if_range: str | None
    authorization: str | None
    host: str


@dataclass
class Hub:
    """What it has, and how it behaves. Changed by tests while it runs."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off."""
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """That the next requests get instead."""
    then: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """The same, for those that come after the next cut."""
    token: str | None = None
    linked_etag: str | None = None
    """The digest that it tells; its own where this is None and `redirects` is set."""
    redirects: str = ""
    """Where files lie really: another server's address."""
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    wrong_part: bool = False
    asked: list[Asked] = field(default_factory=list)
    gate: threading.Event | None = None
    """Answers stop in the middle until it is set."""
    halfway: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, headers = self.hub, self.headers
        hub.asked.append(
            Asked(self.path, headers["range"], headers["if-range"], headers["authorization"], headers["host"])
        )
        if hub.statuses:
            self.refuse(*hub.statuses.pop(0))
        elif hub.token is not None and headers["authorization"] != f"Bearer {hub.token}":
            self.refuse(401, {"x-error-code": "RepoNotFound"})
        elif "gone" in self.path:
            self.refuse(404, {"x-error-code": "EntryNotFound"})
        elif hub.redirects and self.path.startswith("/owner"):
            digest = hub.linked_etag or hashlib.sha256(hub.content).hexdigest()
            self.refuse(
                302,
                {
                    "location": f"{hub.redirects}/cdn{self.path}",
                    "x-linked-etag": f'"{digest}"',
                    "x-repo-commit": "c0ffee",
                },
            )
        else:
            self.send()

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self) -> None:
        hub, first = self.hub, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["range"] or "")
        if wanted and hub.ranges and self.headers["if-range"] in (None, hub.etag):
            first = int(wanted[1])
            if first >= len(hub.content):
                return self.refuse(416, {"content-range": f"bytes */{len(hub.content)}"})
        body = hub.content[first:]
        self.send_response(206 if wanted and first else 200)
        if wanted and first:
            shown = 0 if hub.wrong_part else first
            self.send_header("content-range", f"bytes {shown}-{len(hub.content) - 1}/{len(hub.content)}")
        if hub.etag:
            self.send_header("etag", hub.etag)
        if hub.length:
            self.send_header("content-length", str(len(body)))
        for name, value in hub.headers.items():
            self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if hub.cuts:
            hub.statuses, hub.then = hub.then, []
            self.wfile.write(body[: hub.cuts.pop(0)])
        elif hub.gate is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            hub.halfway.set()
            hub.gate.wait(30)
            self.wfile.write(body[len(body) // 2 :])
        else:
            self.wfile.write(body)


@contextmanager
def playing() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        if hub.gate is not None:
            hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
