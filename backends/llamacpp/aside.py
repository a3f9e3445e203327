"""Work whose length or depth depends on what a client has sent, and that must not hold up or harm anybody else."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SHORT_BYTES = 4096
"""Tokenised in less time than a thread takes to begin."""

STACK_BYTES = 16 * 1024 * 1024
"""Sixteen times what the same work had in `grammar_child.py`, and came back from."""


async def aside(size_bytes: int, work: Callable[[], T]) -> T:
    """Short work at once; long work on a thread, so that streams go on."""
    return work() if size_bytes <= SHORT_BYTES else await asyncio.to_thread(work)


class _Deep:
    """One thread with a stack that is large whatever the system gives."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            before = threading.stack_size(STACK_BYTES)
            try:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="deep")
                self._pool.submit(int).result()  # its thread begins now, while the size is set
            finally:
                threading.stack_size(before)
        return self._pool


_deep = _Deep()


async def deep(work: Callable[[], T]) -> T:
    """Work that recurses as deep as a client likes, one at a time."""
    return await asyncio.get_running_loop().run_in_executor(_deep.pool(), work)
