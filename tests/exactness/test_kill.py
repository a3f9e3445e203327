"""`kill -9` under load: what a client received whole is in the ledger once, limits go on from there, and what was being worked
on is settled at what it held."""

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.crowd import CHAT, USAGE, Crowd, moody
from tests.exactness.test_limits import KEY, config
from tests.faults.upstream import Line, Received, Upstream, playing
from tests.processes import Serving, serving
from tests.redis_server import RedisServer

ROUNDS = 20
LIMITS: list[dict[str, Any]] = [
    {"per": "1d", "requests": 1_000_000},
    {"per": "1d", "tokens": 100_000_000},
    {"concurrent": 50},
]
STUCK = 3


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    stuck = threading.Semaphore(0)

    def play(request: Received, line: Line) -> None:
        if request.json.get("user") == "stuck":
            arrived.release()
            line.wait_until_peer_leaves()
        else:
            moody(request, line)

    arrived = stuck
    with playing(play) as upstream:
        upstream.stuck = arrived  # type: ignore[attr-defined]
        yield upstream


def rows(gateway: Serving) -> dict[str, dict[str, Any]]:
    with sqlite3.connect(gateway.home / "chasqui.db", timeout=30) as database:
        database.row_factory = sqlite3.Row
        found = [dict(row) for row in database.execute("SELECT * FROM requests")]
    database.close()
    assert len(found) == len({row["id"] for row in found})
    return {row["id"]: row for row in found}


def sums(gateway: Serving) -> tuple[int, int]:
    with sqlite3.connect(gateway.home / "chasqui.db", timeout=30) as database:
        query = "SELECT sum(requests), sum(prompt_tokens + completion_tokens) FROM usage WHERE grain_s = 60"
        requests, tokens = database.execute(query).fetchone()
    database.close()
    return requests, tokens


async def kill_under_load(gateway: Serving, crowd: Crowd, after_s: float, upstream: Any) -> None:
    asking = asyncio.create_task(crowd.ask())
    stuck = [asyncio.create_task(be_stuck(gateway)) for _ in range(STUCK)]
    for _ in range(STUCK):
        await asyncio.to_thread(upstream.stuck.acquire, timeout=20)
    await asyncio.sleep(after_s)
    gateway.kill()
    crowd.going_on = False
    await asking
    await asyncio.gather(*stuck)


async def be_stuck(gateway: Serving) -> None:
    """A request that its upstream never answers."""
    import aiohttp

    body = {"model": "up", "user": "stuck", "max_tokens": 10, "messages": [{"role": "user", "content": "hello"}]}
    async with aiohttp.ClientSession() as session:
        try:
            async with session.post(
                gateway.url + CHAT, json=body, headers={"authorization": f"Bearer {KEY}"}
            ) as answer:
                await answer.read()
        except aiohttp.ClientError:
            pass


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_no_answer_and_count_none_twice(tmp_path: Path, upstream: Upstream) -> None:
    luck = np.random.default_rng(7)
    complete: set[str] = set()
    crashed = 0
    with serving(tmp_path, config(upstream, LIMITS), {"CROWD_KEY": KEY}) as gateway:
        for number in range(ROUNDS):
            crowd = Crowd([gateway.url], KEY, clients=16, leaving=0.1, failing=0.1, seed=number, until_refused=False)
            asyncio.run(kill_under_load(gateway, crowd, float(luck.uniform(0.1, 0.7)), upstream))
            complete |= set(crowd.seen.complete)
            gateway.start()
            found = rows(gateway)  # replayed before the gateway was ready
            outcomes = Counter(row["outcome"] for row in found.values())
            assert {found[one]["outcome"] for one in complete} == {"complete"}, (
                "answers that arrived whole are all there"
            )
            assert outcomes["crashed"] >= crashed + STUCK
            crashed = outcomes["crashed"]
            for row in found.values():
                if row["outcome"] == "crashed":
                    assert row["completion_tokens"] >= 10
                    assert row["prompt_tokens"] + row["completion_tokens"] > USAGE["total_tokens"]
            check_limits(gateway, found)
    print(f"{ROUNDS} kills, {len(complete)} whole answers, all in the ledger once; {crashed} requests were cut off")


def check_limits(gateway: Serving, found: dict[str, dict[str, Any]]) -> None:
    """The headers of the next answer say what is left: the limits less everything in the ledger."""
    admitted = sum(row["admitted"] for row in found.values())
    tokens = sum(row["prompt_tokens"] + row["completion_tokens"] for row in found.values())
    assert sums(gateway) == (admitted, tokens)
    with gateway.client(KEY) as http:
        answer = http.post(CHAT, json={"model": "up", "messages": [], "max_tokens": 1})
    assert int(answer.headers["x-ratelimit-remaining-requests"]) == 1_000_000 - admitted - 1
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 100_000_000 - tokens - USAGE["total_tokens"]


def test_on_redis_a_killed_gateway_loses_its_slots_and_nothing_else(
    tmp_path: Path, upstream: Upstream, redis_server: RedisServer
) -> None:
    """Redis goes on counting; what was held stays counted."""
    redis_server.say("FLUSHALL")
    shared = config(upstream, LIMITS, limits={"store": redis_server.url, "timeout_s": 10})
    with serving(tmp_path, shared, {"CROWD_KEY": KEY}) as gateway:
        crowd = Crowd([gateway.url], KEY, clients=8, until_refused=False)
        asyncio.run(kill_under_load(gateway, crowd, 0.3, upstream))
        gateway.start()
        found = rows(gateway)
        assert {found[one]["outcome"] for one in crowd.seen.complete} == {"complete"}
        with gateway.client(KEY) as http:
            answer = http.post(CHAT, json={"model": "up", "messages": [], "max_tokens": 1})
        admitted = sum(row["admitted"] for row in found.values())
        # what Redis admitted and the gateway had not begun when it died counts there and is in no journal
        left = int(answer.headers["x-ratelimit-remaining-requests"])
        assert 1_000_000 - admitted - 1 - crowd.clients <= left <= 1_000_000 - admitted - 1
