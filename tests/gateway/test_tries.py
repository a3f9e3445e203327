"""One request's way along its route, without a network: what is asked in which order, and with what pauses."""

import pytest

from backends.errors import BackendError, BackendUnavailable, InvalidRequest, UpstreamBroken, UpstreamRefused
from gateway.tries import Tries
from policies.routing import Station

pytestmark = pytest.mark.anyio

A, B = Station("a", "m"), Station("b", "m")
BROKEN = UpstreamBroken("a", "500")
BUSY = UpstreamRefused("a", 429, "m", type_="t", code=None, param=None, retry_after="3")
LONG = UpstreamRefused("a", 429, "m", type_="t", code=None, param=None, retry_after="60")
WRONG = UpstreamRefused("a", 400, "m", type_="t", code=None, param=None)


async def walk(failure: BackendError, *, retries: int) -> tuple[list[str], list[float], BackendError]:
    """Everybody fails in the same way: who was asked, and how long each pause was."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    tries = Tries("m", [A, B], retries=retries, sleep=sleep, jitter=lambda: 1.0)
    asked: list[str] = []
    while (station := await tries.next()) is not None:
        asked.append(station.backend)
        tries.failed(failure)
    return asked, pauses, tries.failure


@pytest.mark.parametrize(
    ("failure", "retries", "asked", "pauses"),
    [
        (BROKEN, 0, "ab", []),
        (BROKEN, 2, "aaabbb", [0.25, 0.5, 0.25, 0.5]),
        (BUSY, 1, "aabb", [3.0, 3.0]),
        (LONG, 2, "ab", []),
        (WRONG, 2, "a", []),
        (InvalidRequest("no"), 2, "a", []),
        (BackendUnavailable("a", "gone", retry_after_s=30), 2, "ab", []),
    ],
)
async def test_the_way_along_a_route(failure: BackendError, retries: int, asked: str, pauses: list[float]) -> None:
    assert await walk(failure, retries=retries) == (list(asked), pauses, failure)


async def test_nobody_to_ask_is_unavailable() -> None:
    tries = Tries("m", [], retries=3)
    assert await tries.next() is None
    assert isinstance(tries.failure, BackendUnavailable)
