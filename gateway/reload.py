"""A changed configuration is taken over while requests are in work: they end with what they began with, the next ones begin
with the new. What has not changed (connections, workers, indexes, counts of limits) goes on. A configuration that cannot be
used changes nothing but a log line and a metric.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from backends.errors import BackendError
from backends.health import Watched
from gateway.jobs import Jobs
from gateway.services import Services
from gateway.settings import ConfigInvalid, Loaded, watched_files
from gateway.telemetry import Telemetry
from policies.audit import RELOAD
from policies.errors import PolicyError

log = logging.getLogger("chasqui")

POLL_S = 1.0
RETIRE_POLL_S = 0.1

FIXED = ("server", "home", "store", "limits", "files")
"""What is in force from the start to the end of the process; of `server`, all but `max_body_mb` and `keepalive_s`."""

Stamp = tuple[tuple[str, int, int], ...]


class Reloader:
    """
    Args:
        load: reads the configuration anew.
        build: makes services of it, out of those in use.
    """

    def __init__(
        self,
        app: Telemetry,
        jobs: Jobs,
        *,
        load: Callable[[], Loaded],
        build: Callable[[Loaded, Services], Services],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._app = app
        self._jobs = jobs
        self._load = load
        self._build = build
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def reload(self) -> bool:
        """Whether the configuration was taken over; what is wrong with it is in the log."""
        async with self._lock:
            before = self._app.services
            try:
                loaded = await asyncio.to_thread(self._load)
                services = self._build(loaded, before)
                await services.keys.reload()
            except (ConfigInvalid, BackendError, PolicyError, SQLAlchemyError) as exc:
                log.error("the configuration was not taken over, the one before stays in force:\n%s", exc)
                before.metrics.reloaded(taken=False)
                return False
            except Exception:
                log.exception("the configuration was not taken over, the one before stays in force")
                before.metrics.reloaded(taken=False)
                return False
            self._app.services = services
            await self._keys_again(services)
            self._jobs.serve(services)
            self._retire(before, services)
            services.metrics.reloaded(taken=True)
            log.info("the configuration of %s is in force%s", loaded.path, _needs_restart(before.loaded, loaded))
            return True

    async def _keys_again(self, services: Services) -> None:
        """What was changed while they were read went to those that are no longer in use."""
        try:
            await services.keys.reload()
            await services.house.audit.record(RELOAD, "config.reload", str(services.loaded.path))
        except SQLAlchemyError as exc:
            log.error("the keys could not be read again, or the audit not be written: %s", exc)

    async def watch_files(self) -> None:
        """Reload when a file of the configuration was saved, and has then been left alone for a moment."""
        known = pending = await asyncio.to_thread(_stamp, self._app.services.loaded)
        while True:
            await self._sleep(POLL_S)
            now = await asyncio.to_thread(_stamp, self._app.services.loaded)
            if now != known and now == pending:
                await self.reload()
                after = await asyncio.to_thread(_stamp, self._app.services.loaded)
                saved_meanwhile = {path for path, *_ in now} & {path for path, *_ in set(after) - set(now)}
                known = now = now if saved_meanwhile else after
            pending = now

    def _retire(self, before: Services, services: Services) -> None:
        """Close what is no longer used, once the last request that began with it has ended."""
        kept = set(map(id, services.backends.values()))
        gone = [backend for backend in before.backends.values() if id(backend) not in kept]
        if gone:
            task = asyncio.create_task(self._close_when_idle(before, gone), name="retire backends")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _close_when_idle(self, before: Services, gone: Iterable[Watched]) -> None:
        while before.requests.count:
            await self._sleep(RETIRE_POLL_S)
        for backend in gone:
            await backend.aclose()

    async def aclose(self) -> None:
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)


def _stamp(loaded: Loaded) -> Stamp:
    """Changes whenever one of the files does; a missing file is a state like any other."""
    stamps = []
    for path in watched_files(loaded):
        try:
            stat = Path(path).stat()
            stamps.append((str(path), stat.st_mtime_ns, stat.st_size))
        except OSError:
            stamps.append((str(path), 0, -1))
    return tuple(stamps)


def _needs_restart(before: Loaded, now: Loaded) -> str:
    old, new = before.settings.model_dump(), now.settings.model_dump()
    for live in ("max_body_mb", "keepalive_s"):
        old["server"].pop(live, None)
        new["server"].pop(live, None)
    changed = [name for name in FIXED if old[name] != new[name]]
    return f"; what changed in {' and '.join(changed)} counts from the next start on" if changed else ""
