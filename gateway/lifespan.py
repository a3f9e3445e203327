"""Opens what the application needs, keeps the background jobs, closes everything in the other order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from litestar import Litestar

from gateway.alerting import Alerting
from gateway.jobs import Jobs, start
from gateway.reload import Reloader
from gateway.telemetry import Telemetry

log = logging.getLogger("chasqui")


async def closing_of(work: Awaitable[object]) -> None:
    """What is not the truth must not keep it from being written."""
    try:
        await work
    except Exception:
        log.exception("a part of the gateway did not end well")


@asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    telemetry: Telemetry = app.state.telemetry
    jobs: Jobs = app.state.jobs
    reloader: Reloader | None = app.state.reloader
    house = telemetry.services.house
    await house.writer.attempt(adopt=True)
    house.journal.open()
    await telemetry.services.keys.reload()
    await house.watcher.poll()
    await telemetry.services.cache.open()
    house.fleet.start()
    jobs.serve(telemetry.services)
    watching = [
        start(house.watcher.run, "watcher"),
        start(house.writer.run, "ledger"),
        start(house.library.run, "collections"),
    ]
    alerting: Alerting | None = app.state.alerting
    if alerting is not None:
        watching.append(start(alerting.run, "alerts"))
    if reloader is not None:
        watching.append(start(reloader.watch_files, "watch the configuration"))
    try:
        yield
    finally:
        for job in watching:
            job.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        await jobs.aclose()
        if reloader is not None:
            await reloader.aclose()
        for backend in telemetry.services.backends.values():
            await backend.aclose()
        await house.fleet.aclose()
        await closing_of(telemetry.services.cache.flush())
        await closing_of(house.library.save())
        await closing_of(house.parsers.aclose())
        await house.quotas.drain()
        await house.quotas.aclose()
        house.journal.close()
        await house.writer.attempt(adopt=False)
        house.writer.close()
        house.journal.release()
        house.access_log.flush()
        if house.cache_database is not house.database:
            await house.cache_database.dispose()
        await house.database.dispose()
