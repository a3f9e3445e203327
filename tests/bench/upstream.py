"""An upstream that answers at once: a whole chat answer, or fifty events where the body asks for a stream. One argument: the port.

A body may ask for worse by `"bench"`: `cut` ends the connection in the middle, `pause` waits there.
Where the message also holds the word `paced`, the events come one by one, as a model would write them: 50 in one second.
"""

import asyncio
import json
import sys
from typing import cast

import uvloop

EVENTS = 50
PAUSE_S = 1.0
PACE_S = 0.02
PACED = "paced"
"""It stands in the message, because that is the one text which every gateway hands on unchanged."""

WORDS = "hello there"
STREAM_WORDS = [*(f"word {number} " for number in range(EVENTS - 1)), ""]

CHOICE = {"index": 0, "message": {"role": "assistant", "content": WORDS}, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
ANSWER = json.dumps(
    {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE], "usage": USAGE}
).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER


def event(content: str) -> bytes:
    choice = {
        "index": 0,
        "delta": {"content": content} if content else {},
        "finish_reason": None if content else "stop",
    }
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_PARTS = [chunked(event(content)) for content in STREAM_WORDS]
STREAM_PARTS[-1] += chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"
STREAM = STREAM_HEAD + b"".join(STREAM_PARTS)


class Upstream(asyncio.Protocol):
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not inherit from it
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            place = head.lower().find(b"content-length:")
            length = int(head[place + 15 :].split(b"\r\n")[0]) if place >= 0 else 0
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(rest[:length].replace(b" ", b""))

    def _answer(self, body: bytes) -> None:
        streamed = b'"stream":true' in body
        if b'"bench"' in body:
            self._answer_half(STREAM if streamed else WHOLE, cut=b'"bench":"cut"' in body)
        elif not streamed:
            self._transport.write(WHOLE)
        elif PACED.encode() not in body:
            self._transport.write(STREAM)
        else:
            self._transport.write(STREAM_HEAD)
            self._wait_for(0, self._loop.time())

    def _answer_half(self, answer: bytes, *, cut: bool) -> None:
        half = len(answer) // 2
        self._transport.write(answer[:half])
        if cut:
            self._transport.close()
        else:
            self._timer = self._loop.call_later(PAUSE_S, self._transport.write, answer[half:])

    def _wait_for(self, number: int, began: float) -> None:
        # Counted from the beginning, so that late timers do not add up.
        self._timer = self._loop.call_at(began + PACE_S * (number + 1), self._send, number, began)

    def _send(self, number: int, began: float) -> None:
        self._transport.write(STREAM_PARTS[number])
        if number + 1 < EVENTS:
            self._wait_for(number + 1, began)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
