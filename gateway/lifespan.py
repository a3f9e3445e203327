"""Opens what the application needs, keeps the background jobs, closes everything in the other order."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar

from gateway.services import Services
from retrieval.ingestion import run_until_ready

log = logging.getLogger("chasqui")


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    services: Services = app.state.services
    services.journal.open()
    await services.keys.reload()
    await services.watcher.poll()
    services.fleet.start()
    jobs = [asyncio.create_task(services.watcher.run(), name="watcher")]
    for name, ingestion in services.ingestions.items():
        jobs.append(asyncio.create_task(run_until_ready(ingestion, name=name), name=f"ingest {name}"))
    for job in jobs:
        job.add_done_callback(_report)
    try:
        yield
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        for backend in services.backends.values():
            await backend.aclose()
        await services.fleet.aclose()
        services.journal.close()
        services.access_log.flush()
        await services.database.dispose()


def _report(job: "asyncio.Task[None]") -> None:
    """A background job that ends by itself with an exception is a bug, and must not end silently."""
    if not job.cancelled() and (exc := job.exception()) is not None:
        log.error("the background job '%s' ended", job.get_name(), exc_info=exc)
