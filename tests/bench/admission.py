"""What an admission costs: reserve a request, a slot and tokens, settle. `make bench-admission`.

In memory: microseconds of processor time. In Redis: round trips, counted at Redis itself, and microseconds on both sides.
"""

import asyncio
import time
from collections.abc import Sequence

from redis.asyncio import Redis

from policies.quotas import Limit, Measure, NoHistory, QuotaStore, Scope
from policies.quotas_memory import MemoryQuotas
from policies.quotas_redis import RedisQuotas
from policies.spans import Calendar, Rolling
from tests.redis_server import running_redis

REQUESTS = 20_000
ROUNDS = 5

KEY = Scope("key")

LIMITS = {
    "requests, tokens, slots": (
        Limit(KEY, Measure.REQUESTS, 10**12, Rolling(3600.0)),
        Limit(KEY, Measure.TOKENS, 10**14, Rolling(86_400.0)),
        Limit(KEY, Measure.CONCURRENT, 10_000, None),
    ),
    "and money a month, tokens a minute": (
        Limit(KEY, Measure.REQUESTS, 10**12, Rolling(3600.0)),
        Limit(KEY, Measure.TOKENS, 10**14, Rolling(86_400.0)),
        Limit(KEY, Measure.TOKENS, 10**14, Rolling(60.0)),
        Limit(KEY, Measure.COST, 10**15, Calendar("month")),
        Limit(KEY, Measure.CONCURRENT, 10_000, None),
    ),
}
ADMISSION = {Measure.REQUESTS: 1, Measure.CONCURRENT: 1}
HELD = {Measure.TOKENS: 4000, Measure.COST: 900}
USED = {Measure.TOKENS: 120, Measure.COST: 30, Measure.COMPUTE: 0}


async def in_two_steps(store: QuotaStore, limits: Sequence[Limit], name: str) -> None:
    """As for a local model: the tokens are known when its worker has counted them."""
    await store.reserve(name, limits, ADMISSION)
    await store.raise_to(name, HELD)
    store.settle(name, USED)


async def in_one_step(store: QuotaStore, limits: Sequence[Limit], name: str) -> None:
    """As for an upstream: an upper bound is known at once."""
    await store.reserve(name, limits, ADMISSION | HELD)
    store.settle(name, USED)


async def microseconds(store: QuotaStore, limits: Sequence[Limit], admit: object, requests: int) -> float:
    """Of processor time for one request, the best of some rounds."""
    best = float("inf")
    for number in range(ROUNDS):
        began = time.process_time()
        for name in range(requests):
            await admit(store, limits, f"{number}/{name}")  # type: ignore[operator]
        best = min(best, (time.process_time() - began) / requests * 1e6)
        await store.drain()
    return best


async def measure_memory() -> None:
    for words, limits in LIMITS.items():
        for admit in (in_one_step, in_two_steps):
            cost = await microseconds(MemoryQuotas(time.time), limits, admit, REQUESTS)
            print(f"memory  {words:36} {admit.__name__.replace('_', ' '):14} {cost:6.1f} µs")


async def measure_redis(url: str) -> None:
    client = Redis.from_url(url)
    for words, limits in LIMITS.items():
        for admit in (in_one_step, in_two_steps):
            prefix = f"{{{words}/{admit.__name__}}}:"
            store = RedisQuotas(client, NoHistory(), timeout_s=10, now=time.time, elapsed=time.monotonic, prefix=prefix)
            await admit(store, limits, "warm")
            await store.drain()
            await client.config_resetstat()
            cost = await microseconds(store, limits, admit, REQUESTS // 20)
            stats = await client.info("commandstats")
            scripts = stats["cmdstat_evalsha"]
            steps = scripts["calls"] / (ROUNDS * REQUESTS // 20)
            print(
                f"redis   {words:36} {admit.__name__.replace('_', ' '):14} {cost:6.1f} µs here, "
                f"{scripts['usec'] / scripts['calls']:.0f} µs a script in Redis, {steps - 1:.2f} round trips before the upstream"
            )
            for job in store._jobs:
                job.cancel()
    await client.aclose()


async def main() -> None:
    await measure_memory()
    with running_redis() as server:
        await measure_redis(server.url)


if __name__ == "__main__":
    asyncio.run(main())
