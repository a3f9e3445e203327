"""HTTP to an engine, as bytes. The seam behind which clients are exchanged: `transport_http1` and `transport_aiohttp`."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from backends.settings import Timeouts


class TransportError(Exception):
    """Base of what a transport raises. Nothing of the foreign library leaves it."""


class ConnectFailed(TransportError):
    """No byte of the request can have been acted on."""


class ConnectionBroken(TransportError):
    """The connection ended or talked nonsense after the request was, or may have been, sent."""


class DeadlinePassed(TransportError):
    def __init__(self, phase: str, deadline_s: float) -> None:
        super().__init__(f"{phase} deadline of {deadline_s:g} s")
        self.phase = phase
        self.deadline_s = deadline_s


SLICE_BYTES = 256 * 1024
"""Of a large body, written at a time."""


class Upload(Protocol):
    """A body that is not in memory."""

    size_bytes: int

    def pieces(self) -> Iterator[bytes]:
        """From the beginning, at every call; of at most `SLICE_BYTES` each."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    """Appended to the base URL."""
    headers: Mapping[str, str]
    body: bytes | Upload
    timeouts: Timeouts
    total_s: float | None = None
    """For the whole exchange, where it is not a stream."""


class Reply(Protocol):
    """An answer whose head has come. Close it on every path: closing before the end closes the connection."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

    async def piece(self, *, first: bool = False) -> bytes:
        """What has come of the body since the last call, at least a byte; empty at its end.

        Args:
            first: a head alone was no sign of life; the first-byte deadline holds, not the one between bytes.

        Raises:
            ConnectionBroken: it ended early.
            DeadlinePassed: idle, first_byte or total.
        """
        ...

    def close(self) -> None: ...


class Transport(Protocol):
    async def send(self, request: Request) -> Reply:
        """
        Raises:
            ConnectFailed, ConnectionBroken, DeadlinePassed
        """
        ...

    async def aclose(self) -> None: ...


async def pieces_of(reply: Reply) -> AsyncIterator[bytes]:
    """The body, piece by piece, as it comes; errors as in `Reply.piece`."""
    while piece := await reply.piece():
        yield piece
