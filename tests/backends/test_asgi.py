"""Reading bodies, and stopping work when the client leaves."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backends.asgi import (
    BodyTooLarge,
    ClientGone,
    Message,
    Receive,
    RequestTimeout,
    read_body,
    send_json,
    until_gone,
)

pytestmark = pytest.mark.anyio

GONE: Message = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def playing(*messages: Message) -> Receive:
    script = iter(messages)

    async def receive() -> Message:
        return next(script)

    return receive


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([part(b"abc")], b"abc"),
        ([part(b"ab", more=True), part(b"", more=True), part(b"c")], b"abc"),
        ([{"type": "http.request"}], b""),
    ],
)
async def test_a_body_is_joined_and_may_be_as_large_as_the_limit(messages: list[Message], body: bytes) -> None:
    assert await read_body(playing(*messages), limit_bytes=3) == body


async def test_a_body_over_the_limit_is_refused_before_it_has_all_come() -> None:
    with pytest.raises(BodyTooLarge, match="larger than 1 MB") as caught:
        await read_body(playing(part(b"x" * 2**20, more=True), part(b"x", more=True)), limit_bytes=2**20)
    assert caught.value.limit_bytes == 2**20


async def test_a_client_who_leaves_in_the_middle_of_the_body_is_gone() -> None:
    with pytest.raises(ClientGone):
        await read_body(playing(part(b"a", more=True), GONE), limit_bytes=9)


class Client:
    """Leaves when told to, as `asgi_http1` tells it; remembers what it was sent."""

    def __init__(self) -> None:
        self.gone = False
        self.listener: Callable[[], None] | None = None
        self.sent: list[Message] = []

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self.listener = callback

    def leave(self) -> None:
        self.gone = True
        if self.listener is not None:
            self.listener()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def run(self, work: Awaitable[None]) -> Awaitable[bool]:
        return until_gone({"peer": self}, work)


async def test_work_that_ends_before_the_client_leaves_is_complete() -> None:
    client = Client()
    assert await client.run(send_json(client.send, 201, {"a": 1}, {"x-b": "é"})) is True
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]
    assert client.sent[0]["status"] == 201
    assert set(client.sent[0]["headers"]) == {
        (b"content-length", b"7"),
        (b"content-type", b"application/json"),
        (b"x-b", b"\xe9"),
    }
    assert json.loads(client.sent[1]["body"]) == {"a": 1}
    assert client.listener is None, "who leaves now cancels nothing any more"


async def test_a_client_who_leaves_cancels_the_work() -> None:
    client, cleaned = Client(), asyncio.Event()

    async def work() -> None:
        asyncio.get_running_loop().call_soon(client.leave)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async with asyncio.timeout(5):
        assert await client.run(work()) is False
    task = asyncio.current_task()
    assert (cleaned.is_set(), task is not None and task.cancelling()) == (True, 0)


async def test_errors_of_the_work_come_out() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await Client().run(work())


@pytest.mark.parametrize("client_leaves_too", [False, True])
async def test_a_cancellation_from_elsewhere_is_passed_on(client_leaves_too: bool) -> None:
    client, begun = Client(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(client.run(work()))
    await begun.wait()
    if client_leaves_too:
        client.leave()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_body_that_stops_arriving_is_given_up() -> None:
    messages = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()

    with pytest.raises(RequestTimeout):
        await read_body(receive, limit_bytes=100, idle_s=0.01)


async def test_a_body_that_is_announced_too_large_is_not_read() -> None:
    async def receive() -> Any:
        raise AssertionError("nothing should be read")

    with pytest.raises(BodyTooLarge):
        await read_body(receive, limit_bytes=100, announced_bytes=101)
