"""One station after the other, until one answers. Chats have a way of their own, since they may be hedged."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from backends.errors import BackendError
from gateway.exchange import Exchange
from gateway.tries import Tries
from policies.routing import Station

T = TypeVar("T")


async def in_turn(
    exchange: Exchange, tries: Tries, ask: Callable[[Station], Awaitable[T]], *, clock: Callable[[], float]
) -> T:
    """What the first station gives that answers; the exchange knows which one is asked, and for how long it waits.

    Args:
        clock: the performance clock.

    Raises:
        BackendError: of the last one that was asked.
    """
    waiting_since = clock()
    try:
        while (station := await tries.next()) is not None:
            exchange.attempts += 1
            exchange.backend, exchange.backend_model = station.backend, station.model
            try:
                return await ask(station)
            except BackendError as failure:
                tries.failed(failure)
        raise tries.failure
    finally:
        exchange.waited_s += clock() - waiting_since
