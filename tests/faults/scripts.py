"""What faulty upstreams do, on one call each. Those that also have to answer do so in the kind that was asked for."""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.upstream import Line, Received, Script, answer_of, chunk_of

HELLO = "Hello"
WORDS = "Please read this to your user."
"""An upstream's own words, for errors that are passed on."""

BAD_KEY = "upstream-secret-0123456789"
"""The gateway's own key at the upstream; no client ever sees it."""

LIKE_A_KEY = "sk-somebody-elses-0123456789"
"""Nor anything that looks like a key."""

MB = 1024 * 1024


def streams(request: Received) -> bool:
    return bool(request.json.get("stream"))


def body_of(text: str, *, stream: bool, finish: str = "stop") -> bytes:
    """A whole answer, or all events of one: the text in two halves, then `[DONE]`. Nothing in it is escaped without need."""
    if stream:
        half = (len(text) + 1) // 2
        chunks = [_json(chunk_of(text[:half])), _json(chunk_of(text[half:], finish=finish)), "[DONE]"]
        return "".join(f"data: {chunk}\n\n" for chunk in chunks).encode()
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return _json(json.loads(answer_of("", choices=[choice]))).encode()


def message_of(body: bytes, *, stream: bool, length: int | None = None) -> bytes:
    """An HTTP answer around a body, of which `length` bytes are announced: all, where it is not given."""
    kind = "text/event-stream" if stream else "application/json"
    announced = len(body) if length is None else length
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {announced}\r\n\r\n".encode() + body


# Answers.


def says(text: str, *, finish: str = "stop") -> Script:
    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        line.send(message_of(body_of(text, stream=stream, finish=finish), stream=stream))

    return script


hello = says(HELLO)


def in_pieces(size_bytes: int, *, pause_s: float = 0) -> Script:
    """The body cut wherever it happens to be cut."""

    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        line.start_stream("text/event-stream" if stream else "application/json")
        for piece in _cut(body_of(HELLO, stream=stream), size_bytes):
            line.chunk(piece)
            line.pause(pause_s)
        line.end_stream()

    return script


def slow_head(pause_s: float) -> Script:
    """One byte of the head at a time."""

    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        head, _, body = message_of(body_of(HELLO, stream=stream), stream=stream).partition(b"\r\n\r\n")
        for piece in _cut(head, 1):
            line.send(piece)
            line.pause(pause_s)
        line.send(b"\r\n\r\n" + body)

    return script


def late_body(pause_s: float) -> Script:
    """The head at once, nothing behind it for a while."""

    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        line.start_stream("text/event-stream" if stream else "application/json")
        line.pause(pause_s)
        line.chunk(body_of(HELLO, stream=stream))
        line.end_stream()

    return script


def large_body(request: Received, line: Line) -> None:
    """50 MB of text; streamed, in events of 1 MB."""
    if not streams(request):
        line.answer(200, body_of("x" * 50 * MB, stream=False))
        return
    line.start_stream()
    for _ in range(50):
        line.event(chunk_of("x" * MB))
    line.event(chunk_of("", finish="stop"))
    line.event("[DONE]")
    line.end_stream()


def packed(request: Received, line: Line) -> None:
    """gzip, each event flushed by itself."""
    stream = streams(request)
    kind = "text/event-stream" if stream else "application/json"
    line.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-encoding: gzip\r\n".encode())
    line.send(b"transfer-encoding: chunked\r\n\r\n")
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    for piece in body_of(HELLO, stream=stream).splitlines(keepends=True):
        line.chunk(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH))
    line.chunk(packer.flush())
    line.end_stream()


def answers_twice(*, late: bool) -> Script:
    """A second answer right behind the first, or when the client has the first."""

    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        asked, unasked = (message_of(body_of(text, stream=stream), stream=stream) for text in (HELLO, "for nobody"))
        if late:
            line.send(asked)
            line.wait_until_heard()
            line.send(unasked)
        else:
            line.send(asked + unasked)

    return script


def other_kind(request: Received, line: Line) -> None:
    """JSON where a stream was asked for, a stream where it was not."""
    stream = not streams(request)
    line.send(message_of(body_of(HELLO, stream=stream), stream=stream))


# Refusals.


def error(status: int, code: str = "some_code", *, message: str = WORDS, **headers: str) -> Script:
    body = json.dumps({"error": {"message": message, "type": "some_type", "param": None, "code": code}}).encode()
    return lambda request, line: line.answer(status, body, **headers)


def limited(pause_s: int) -> Script:
    """429 with a `Retry-After`, and again 429 for whoever asks before that is over; then the answer."""
    free_at_s = 0.0

    def script(request: Received, line: Line) -> None:
        nonlocal free_at_s
        if 0 < free_at_s <= time.monotonic():
            free_at_s = 0.0
            hello(request, line)
            return
        free_at_s = time.monotonic() + pause_s - 0.1  # timers may go off a little early
        error(429, retry_after=str(pause_s))(request, line)

    return script


def redirect(request: Received, line: Line) -> None:
    """To where the answer would come, and with a body that looks like it."""
    stream = streams(request)
    kind = "text/event-stream" if stream else "application/json"
    line.answer(302, body_of("elsewhere", stream=stream), location=request.path, content_type=kind)


# Failures before the first event.


def reset(request: Received, line: Line) -> None:
    line.reset()


def close(request: Received, line: Line) -> None:
    line.close()


def silence(request: Received, line: Line) -> None:
    line.wait_until_peer_leaves()


def head_only(request: Received, line: Line) -> None:
    line.start_stream("text/event-stream" if streams(request) else "application/json")
    line.wait_until_peer_leaves()


def html(request: Received, line: Line) -> None:
    line.answer(200, b"<html>Welcome to nginx!</html>", content_type="text/html")


def empty(request: Received, line: Line) -> None:
    line.send(message_of(b"", stream=streams(request)))


def foreign_encoding(request: Received, line: Line) -> None:
    line.answer(200, b"\x0b\x02\x80Hello\x03", content_encoding="br")


def nonsense(request: Received, line: Line) -> None:
    line.send(b"\x00\x01 nonsense\r\n\r\n")


def endless(request: Received, line: Line) -> None:
    """One event, or one answer, that grows and grows."""
    line.start_stream("text/event-stream" if streams(request) else "application/json")
    line.chunk(b'data: {"choices": [{"delta": {"content": "' if streams(request) else b'{"choices": [{"text": "')
    megabyte = b"x" * MB
    while line.pause(0):
        line.chunk(megabyte)


# Failures in the middle.


def streamed(*events: Any, end: Callable[[Line], object]) -> Script:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        for event in events:
            line.event(event)
        end(line)

    return script


def misspelt(old: bytes, new: bytes, *, at_once: bool = False) -> Script:
    """The answer with some of its bytes exchanged; in a stream only when the client has the first event, or `at_once`."""

    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        body = body_of(HELLO, stream=stream)
        kept = body.index(b"data: ", 1) if stream and not at_once else 0
        start, rest = body[:kept], body[kept:].replace(old, new)
        line.send(message_of(start, stream=stream, length=len(start + rest)))
        if start:
            line.wait_until_heard()
        line.send(rest)

    return script


def half(end: Callable[[Line], object]) -> Script:
    """Half of a whole answer, whose length was announced."""

    def script(request: Received, line: Line) -> None:
        body = body_of(HELLO, stream=False)
        line.send(message_of(body[: len(body) // 2], stream=False, length=len(body)))
        end(line)

    return script


def reset_when_heard(line: Line) -> None:
    line.wait_until_heard()
    line.reset()


def comment(line: Line) -> None:
    """Keep-alive comments and nothing else."""
    while line.pause(0.02):
        line.chunk(b": still here\n\n")


def spoil_chunks(line: Line) -> None:
    line.send(b"this is no length\r\n\r\n")


def half_in_bad_chunks(request: Received, line: Line) -> None:
    line.start_stream("application/json")
    line.chunk(body_of(HELLO, stream=False)[:50])
    spoil_chunks(line)


def announces(share: float) -> Script:
    """All of the body, but a wrong length: `share` of the right one. Closes behind it."""

    def script(request: Received, line: Line) -> None:
        stream = streams(request)
        body = body_of(HELLO, stream=stream)
        line.send(message_of(body, stream=stream, length=int(len(body) * share)))
        line.close()

    return script


def without_length(request: Received, line: Line) -> None:
    """Half of the answer, which is to end where the connection does."""
    stream = streams(request)
    kind = "text/event-stream" if stream else "application/json"
    body = body_of(HELLO, stream=stream)
    line.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode() + body[: len(body) // 2])
    line.close()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(data: bytes, size_bytes: int) -> Iterator[bytes]:
    return (data[start : start + size_bytes] for start in range(0, len(data), size_bytes))
