"""One line per answered request, written many at a time: a record of `logging` per request would cost more than its routing.

A killed process loses at most the lines of the last tenth of a second; what counts is in the journal.
"""

import asyncio
import sys
import time
from collections.abc import Callable

from gateway.exchange import Exchange

FLUSH_S = 0.1

QUIET = frozenset({"/health", "/health/ready", "/metrics"})
"""Asked every few seconds by machines; not worth a line."""


class AccessLog:
    """
    Args:
        write: takes text with line ends; standard error where it is not given.
        clock: Unix seconds.
    """

    def __init__(self, write: Callable[[str], object] | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._write = write or _to_stderr
        self._clock = clock
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, method: str, exchange: Exchange, status: int, seconds: float) -> None:
        if exchange.path in QUIET:
            return
        second = int(self._clock())
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%H:%M:%S", time.localtime(second))
        self._lines.append(f"{self._stamp} INFO    chasqui.access {line_of(method, exchange, status, seconds)}\n")
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            self._write("".join(lines))


def line_of(method: str, exchange: Exchange, status: int, seconds: float) -> str:
    """Fields separated by spaces; a path is a client's and is written without control characters."""
    path = exchange.path[:200]
    if not (path.isascii() and path.isprintable()):
        path = path.encode("unicode_escape").decode()
    line = f"{method} {path} {status} {exchange.id} {seconds * 1000:.0f}ms"
    if exchange.caller is not None:
        line += f" key={exchange.caller.key_id}"
    if exchange.backend is not None:
        usage = exchange.usage
        line += f" model={exchange.model} backend={exchange.backend}"
        line += f" tokens={usage.prompt_tokens}+{usage.completion_tokens} {exchange.outcome}"
    return f"{line} error={exchange.error}" if exchange.error else line


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
