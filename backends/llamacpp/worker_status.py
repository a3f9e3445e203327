"""What a worker tells of itself: `GET /status`. Numbers that only grow are counted since its start."""

import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.llamacpp.embedding_queue import EmbeddingQueue
from backends.llamacpp.generation import Generator


def status_of(thread: Generator | EmbeddingQueue, *, name: str, serves: str) -> dict[str, Any]:
    info = thread.engine.info
    status: dict[str, Any] = {
        "model": name,
        "description": info.description,
        "serves": serves,
        "context_tokens": info.context_tokens,
        "running": thread.running,
        "waiting": thread.waiting,
        "memory_bytes": memory_bytes(),
        "counters": asdict(thread.counters),
    }
    if isinstance(thread, Generator):
        status |= {"slots": thread.slots, "tokens_per_second": thread.speed.per_s}
    return status


def memory_bytes() -> int:
    """Resident, of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:  # not Linux: the highest so far, which macOS counts in bytes and others in kilobytes
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
