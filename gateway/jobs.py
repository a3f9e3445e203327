"""What runs in the background for the configuration in use: probes, and the indexing of collections."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.services import Services

log = logging.getLogger("chasqui")

Work = Callable[[], Coroutine[Any, Any, None]]


class Jobs:
    """A job belongs to the object that it works for: it starts when that is first in use and is cancelled when it no longer is."""

    def __init__(self) -> None:
        self._tasks: dict[object, asyncio.Task[None]] = {}

    def serve(self, services: Services) -> None:
        wanted = {one: (name, work) for one, name, work in _jobs_of(services)}
        for one in self._tasks.keys() - wanted.keys():
            self._tasks.pop(one).cancel()
        for one, (name, work) in wanted.items():
            if one not in self._tasks:
                self._tasks[one] = start(work, name)

    async def aclose(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def start(work: Work, name: str) -> "asyncio.Task[None]":
    task = asyncio.create_task(work(), name=name)
    task.add_done_callback(_report)
    return task


def _jobs_of(services: Services) -> list[tuple[object, str, Work]]:
    jobs: list[tuple[object, str, Work]] = []
    jobs.append((services.knowledge.builder, "build collections", services.knowledge.builder.run))
    jobs += [(one, f"watch collection {name}", one.run) for name, one in services.knowledge.declared.items()]
    jobs.append((services.cache, "embedding cache", services.cache.run))
    for name, backend in services.backends.items():
        if backend.probing is not None:
            jobs.append((backend, f"probe {name}", backend.probing))
    return jobs


def _report(job: "asyncio.Task[None]") -> None:
    """A background job that ends by itself with an exception is a bug, and must not end silently."""
    if not job.cancelled() and (exc := job.exception()) is not None:
        log.error("the background job '%s' ended", job.get_name(), exc_info=exc)
