"""Time for what must never go back."""

import time
from collections.abc import Callable


def steady_clock() -> Callable[[], float]:
    """Unix seconds as they were at the call, going on with the monotonic clock: somebody who sets the system's time neither
    empties nor prolongs a window."""
    offset_s = time.time() - time.monotonic()
    return lambda: offset_s + time.monotonic()
