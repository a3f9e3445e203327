"""The little of ASGI that the gateway and the workers share. No framework, no server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BodyTooLarge(Exception):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the request body is larger than {limit_bytes / 1024 / 1024:g} MB")
        self.limit_bytes = limit_bytes


class RequestTimeout(Exception):
    """The client stopped sending its body."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"the request's body stopped arriving; {deadline_s:g} s without a byte")


class ClientGone(Exception):
    """The client left before its request was complete."""


BODY_IDLE_S = 30.0


async def read_body(
    receive: Receive, *, limit_bytes: int, announced_bytes: int = 0, idle_s: float = BODY_IDLE_S
) -> bytes:
    """
    Args:
        announced_bytes: the request's content-length, so that a body that is too large is refused at once.

    Raises:
        BodyTooLarge: as soon as more than `limit_bytes` are announced or have come.
        RequestTimeout: nothing came for `idle_s`.
        ClientGone
    """
    pieces = [
        piece
        async for piece in body_pieces(receive, limit_bytes=limit_bytes, announced_bytes=announced_bytes, idle_s=idle_s)
    ]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def body_pieces(
    receive: Receive, *, limit_bytes: int, announced_bytes: int = 0, idle_s: float = BODY_IDLE_S
) -> AsyncIterator[bytes]:
    """The same, as it comes, for what should not be in memory."""
    if announced_bytes > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    size = 0
    while True:
        try:
            async with asyncio.timeout(idle_s):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(idle_s) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        if piece:
            yield piece
        if not message.get("more_body", False):
            return


async def until_gone(scope: Scope, work: Awaitable[None]) -> bool:
    """Run `work`, cancelling it when the client leaves before its answer is complete. False: the client left.

    The scope is one of `asgi_http1`'s, whose `peer` tells.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    peer = scope["peer"]
    peer.on_gone(leave)
    try:
        await work
    except asyncio.CancelledError:
        if not gone or task.uncancel() > 0:  # somebody else cancels us too: the server is stopping
            raise
        return False
    finally:
        peer.on_gone(None)
    return True


async def send_start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_whole(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    await send_start(send, status, {"content-length": str(len(body))} | dict(headers))
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
    await send_whole(
        send, status, msgspec.json.encode(value), {"content-type": "application/json"} | dict(headers or {})
    )
