"""What only the store in Redis promises; the rest is in `contracts/test_quota_store.py`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from policies import quotas_redis
from policies.errors import QuotaExceeded, QuotaStoreDown
from policies.quotas import History, Limit, Measure, NoHistory, Scope
from policies.quotas_guard import GuardedQuotas
from policies.quotas_memory import MemoryQuotas
from policies.quotas_redis import RedisQuotas, client_of
from policies.spans import Rolling
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio

REQUESTS, TOKENS, CONCURRENT = Measure.REQUESTS, Measure.TOKENS, Measure.CONCURRENT
KEY = Scope("key")
LIMITS = (
    Limit(KEY, REQUESTS, 1000, Rolling(3600.0)),
    Limit(KEY, TOKENS, 100_000, Rolling(3600.0)),
    Limit(KEY, CONCURRENT, 50, None),
)
ONE = {REQUESTS: 1, TOKENS: 100, CONCURRENT: 1}

Make = Callable[..., RedisQuotas]


@pytest.fixture
def own_redis() -> "AsyncIterator[RedisServer]":
    with running_redis() as server:
        yield server  # type: ignore[misc]


@pytest.fixture
async def make(own_redis: RedisServer) -> AsyncIterator[Make]:
    made: list[RedisQuotas] = []

    def make(history: History | None = None, timeout_s: float = 0.3) -> RedisQuotas:
        client = client_of(own_redis.url, timeout_s=timeout_s)
        clocks = {"now": time.time, "elapsed": time.monotonic}
        made.append(RedisQuotas(client, history or NoHistory(), timeout_s=timeout_s, **clocks))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for store in made:
        await store.aclose()


async def used(store: RedisQuotas) -> tuple[int, int]:
    """(requests, tokens) as Redis has them."""
    name = secrets.token_hex(8)
    await store.reserve(name, LIMITS, {})
    standing = store.standing(name)
    store.settle(name, {})
    return tuple(standing[measure].limit - standing[measure].remaining for measure in (REQUESTS, TOKENS))  # type: ignore[return-value]


async def until(store: RedisQuotas, wanted: tuple[int, int]) -> None:
    """The test's own timeout bounds it."""
    while True:
        with suppress(QuotaStoreDown):
            if await used(store) == wanted:
                return
        await asyncio.sleep(0.01)


async def test_what_went_on_alone_during_a_blip_is_counted_when_it_ends(own_redis: RedisServer, make: Make) -> None:
    """Redis had not answered, is back before the requests end, and is told first that they were given up."""
    redis = make()
    store = GuardedQuotas(redis, MemoryQuotas(time.time))
    await store.reserve("before", LIMITS, ONE)
    own_redis.freeze()
    await asyncio.gather(*(store.reserve(str(number), LIMITS, ONE) for number in range(20)))
    own_redis.thaw()
    await until(redis, (1, 100))
    for number in range(20):
        store.settle(str(number), {REQUESTS: 1, TOKENS: 70})
    await until(redis, (21, 100 + 20 * 70))


async def test_a_settlement_that_arrived_without_our_knowing_counts_once_however_late_it_is_sent_again(
    own_redis: RedisServer, make: Make
) -> None:
    store = make()
    await store.reserve("a", LIMITS, ONE)
    own_redis.freeze()
    store.settle("a", {REQUESTS: 1, TOKENS: 60})
    while (
        not store._unsettled["a"].sent or store._sending.locked()
    ):  # until it was sent, and nobody waits for it any more
        await asyncio.sleep(0)
    own_redis.thaw()
    while b"done" not in own_redis.say("HGETALL {chasqui}:h:a"):
        pass
    own_redis.say("DEL {chasqui}:h:a")  # as after a partition that lasted longer than the mark
    await until(store, (1, 60))
    await store.drain()
    assert await used(store) == (1, 60)


class Late:
    """A ledger that learns of ten requests a little later than it is asked; another gateway had them."""

    def __init__(self) -> None:
        self.known = 0

    async def used(
        self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
    ) -> list[tuple[float, int]]:
        return [(time.time(), self.known)] if measure is REQUESTS and self.known else []

    async def recent(self, scope: Scope, measure: Measure, *, since_s: float, until_s: float) -> int:
        return self.known if measure is REQUESTS else 0


async def test_what_reaches_the_ledger_after_a_window_was_told_is_made_up_for(
    own_redis: RedisServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas_redis, "TOP_UP_S", 0.2)
    history = Late()
    store = make(history)
    await store.reserve("a", LIMITS, ONE)
    history.known = 10
    await until(store, (11, 100))


async def test_requests_that_are_worked_on_have_their_slots_again_after_a_flush(
    own_redis: RedisServer, make: Make
) -> None:
    store = make()
    limits = (Limit(KEY, CONCURRENT, 2, None),)
    for name in ("a", "b"):
        await store.reserve(name, limits, {CONCURRENT: 1})
    own_redis.say("FLUSHALL")
    await store.renew()
    with pytest.raises(QuotaExceeded):
        await store.reserve("c", limits, {CONCURRENT: 1})
    store.settle("a", {})
    await store.drain()
    await store.renew()
    await store.reserve("d", limits, {CONCURRENT: 1})


async def test_a_client_who_leaves_while_redis_is_asked_is_not_waited_for(own_redis: RedisServer, make: Make) -> None:
    """Also at the very moment that Redis answers: whoever swallows the cancellation works for nobody."""
    store = make()
    await store.reserve("warm", LIMITS, {})
    swallowed = 0
    for number in range(300):
        task = asyncio.ensure_future(store.reserve(f"r{number}", LIMITS, ONE))
        for _ in range(number % 12):
            await asyncio.sleep(0)
        if task.cancel():
            try:
                await task
                swallowed += 1
            except asyncio.CancelledError:
                pass
        else:
            store.settle(f"r{number}", {REQUESTS: 0, TOKENS: 0})
    assert swallowed == 0
    await until(store, (0, 0))
    await store.reserve("next", (Limit(KEY, CONCURRENT, 2, None),), {CONCURRENT: 1})


async def test_an_unlimited_request_says_nothing_of_a_store_that_is_down(own_redis: RedisServer, make: Make) -> None:
    store = GuardedQuotas(make(), None)
    own_redis.stop()
    with pytest.raises(QuotaStoreDown):
        await store.reserve("a", LIMITS, ONE)
    await store.reserve("b", (), ONE)
    assert store.failing


async def test_many_first_requests_ask_the_ledger_once_and_wait_no_longer_than_the_timeout(
    own_redis: RedisServer, make: Make
) -> None:
    asked = 0

    class Hanging(NoHistory):
        async def used(
            self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
        ) -> list[tuple[float, int]]:
            nonlocal asked
            asked += 1
            await asyncio.sleep(20)
            return []

    store = make(Hanging())
    began = time.monotonic()
    results = await asyncio.gather(
        *(store.reserve(str(number), LIMITS, ONE) for number in range(100)), return_exceptions=True
    )
    assert time.monotonic() - began < 4
    assert {type(result) for result in results} == {QuotaStoreDown}
    assert asked <= 3


async def test_an_upstream_request_is_admitted_in_one_round_trip(own_redis: RedisServer, make: Make) -> None:
    store = make()
    await store.reserve("warm", LIMITS, ONE)
    own_redis.say("CONFIG RESETSTAT")
    for number in range(10):
        await store.reserve(str(number), LIMITS, ONE)
        await store.raise_to(str(number), {TOKENS: 90})
    assert b"cmdstat_evalsha:calls=10," in own_redis.say("INFO commandstats")


async def test_scripts_that_were_flushed_are_sent_again(own_redis: RedisServer, make: Make) -> None:
    store = make()
    await store.reserve("a", LIMITS, ONE)
    own_redis.say("SCRIPT FLUSH")
    await store.reserve("b", LIMITS, ONE)
    own_redis.say("SCRIPT FLUSH")
    store.settle("b", {TOKENS: 50})
    await until(store, (2, 150))


async def test_the_words_for_a_redis_that_cannot_be_used_hold_no_password(make: Make) -> None:
    store = RedisQuotas(
        Redis.from_url("redis://:s3cret-word@127.0.0.1:1/0"),
        NoHistory(),
        timeout_s=0.3,
        now=time.time,
        elapsed=time.monotonic,
    )
    with pytest.raises(QuotaStoreDown) as caught:
        await store.reserve("a", LIMITS, ONE)
    assert "s3cret" not in f"{caught.value} {caught.value.why}"
    await store.aclose()
