"""A `Transport` in memory that plays scripted answers and remembers what it was asked."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from backends.transport import Reply, Request

Piece = bytes | Exception | asyncio.Event
"""Bytes come; an error is raised; an asyncio.Event is waited for."""


class FakeReply:
    def __init__(self, status: int, headers: Mapping[str, str], pieces: Sequence[Piece]) -> None:
        self.status = status
        self.headers = headers
        self.closed = 0
        self.delivered = 0
        self._pieces = deque(pieces)

    async def piece(self, *, first: bool = False) -> bytes:
        while self._pieces:
            match piece := self._pieces.popleft():
                case bytes():
                    self.delivered += 1
                    return piece
                case asyncio.Event():
                    await piece.wait()
                case Exception():
                    raise piece
        return b""

    def close(self) -> None:
        self.closed += 1


class FakeTransport:
    """
    Args:
        outcome: the reply to every request, or the error that takes its place; an asyncio.Event: no head ever comes.
    """

    def __init__(self, outcome: FakeReply | Exception | asyncio.Event) -> None:
        self.requests: list[Request] = []
        self.closed = False
        self._outcome = outcome

    async def send(self, request: Request) -> Reply:
        self.requests.append(request)
        match self._outcome:
            case FakeReply():
                return self._outcome
            case asyncio.Event():
                await self._outcome.wait()
                raise AssertionError("nothing is scripted behind the event")
            case error:
                raise error

    async def aclose(self) -> None:
        self.closed = True
