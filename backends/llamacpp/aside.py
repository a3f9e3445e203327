"""Work whose length depends on what a client has sent: short, it is done at once; long, on a thread, so that streams go on."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SHORT_BYTES = 4096
"""Tokenised in less time than a thread takes to begin."""


async def aside(size_bytes: int, work: Callable[[], T]) -> T:
    return work() if size_bytes <= SHORT_BYTES else await asyncio.to_thread(work)
