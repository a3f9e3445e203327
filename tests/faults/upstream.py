"""A provider that does exactly what it is told, over a real socket: answers, cuts, stalls, resets, nonsense.

A script is a function `(request, line) -> None` that runs on a thread of its own for each request.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    """One request as the upstream saw it."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Line:
    """The connection, for a script."""

    def __init__(self, connection: socket.socket, stopping: threading.Event, heard: threading.Event) -> None:
        self._connection = connection
        self._stopping = stopping
        self._heard = heard

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(
            f"HTTP/1.1 {status} X\r\n".encode()
            + b"".join(f"{k}: {v}\r\n".encode() for k, v in fields.items())
            + b"\r\n"
            + body
        )

    def start_stream(self, content_type: str = "text/event-stream") -> None:
        self.send(f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode())

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def event(self, data: Any) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        self.chunk(f"data: {text}\n\n".encode())

    def end_stream(self) -> None:
        self.send(b"0\r\n\r\n")

    def reset(self) -> None:
        """Cut the connection the hard way: the peer sees a reset, not an end."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def close(self) -> None:
        self._connection.shutdown(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> bool:
        """Do nothing for a while; False when the upstream is being stopped."""
        return not self._stopping.wait(seconds)

    def wait_until_heard(self) -> None:
        """Until the test says that its client holds the first event: a reset may overtake bytes that nobody has read."""
        if not self._heard.wait(5):
            raise OSError("no client has heard of this stream")

    def wait_until_peer_leaves(self) -> bool:
        """True when the peer closed, False when the upstream is being stopped."""
        self._connection.settimeout(0.05)
        while not self._stopping.is_set():
            try:
                if self._connection.recv(65536) == b"":
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
        return False


Script = Callable[[Received, Line], None]


@dataclass
class Upstream:
    port: int
    script: Script
    received: list[Received] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    peer_left: threading.Event = field(default_factory=threading.Event)
    heard: threading.Event = field(default_factory=threading.Event)
    """Set by a test whose scripts wait until its client has the first event."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def playing(script: Script) -> Iterator[Upstream]:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    upstream = Upstream(server.getsockname()[1], script)
    stopping = threading.Event()
    threads: list[threading.Thread] = []

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=_serve, args=(connection, upstream, stopping), daemon=True)
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield upstream
    finally:
        stopping.set()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)
        server.close()


def _serve(connection: socket.socket, upstream: Upstream, stopping: threading.Event) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what a script sends piece by piece, goes so
        buffer = b""
        while not stopping.is_set():
            connection.settimeout(0.1)
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            if not piece:
                return
            buffer += piece
            head, found, rest = buffer.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:] if ": " in line)
            headers = {name.lower(): value for name, value in headers.items()}
            length = int(headers.get("content-length", 0))
            if not found or len(rest) < length:
                continue
            buffer = rest[length:]
            received = Received(head.split(b" ")[1].decode(), headers, rest[:length])
            upstream.received.append(received)
            upstream.arrived.set()
            connection.settimeout(10)
            try:
                upstream.script(received, Line(connection, stopping, upstream.heard))
            except OSError:
                return
            if connection.fileno() < 0:
                return


def chunk_of(text: str, *, finish: str | None = None, model: str = "upstream-model", **extra: Any) -> dict[str, Any]:
    """One streamed chat chunk."""
    delta = {"content": text} if text else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]} | extra


def answer_of(text: str, *, model: str = "upstream-model", **extra: Any) -> bytes:
    """A whole chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}
    return json.dumps(body | extra).encode()
