"""Active health: a question in the background, whose answer the breaker hears as it hears those of requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from backends.errors import BackendError
from backends.health import Breaker
from backends.relay import Relay
from backends.settings import ProbeSettings

log = logging.getLogger("chasqui")


async def keep_probing(
    relay: Relay,
    breaker: Breaker | None,
    settings: ProbeSettings,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Ask every `every_s`, for ever. Says in the log when a backend falls ill or recovers, not each time."""
    well = True
    while True:
        await sleep(settings.every_s)
        try:
            await relay.probe(settings.path, settings.timeout_s)
        except BackendError as failure:
            if well:
                log.warning("probe: %s", failure)
            well = False
            if breaker is not None:
                breaker.failed()
        else:
            if not well:
                log.info("probe: backend '%s' is well again", relay.name)
            well = True
            if breaker is not None:
                breaker.succeeded()
