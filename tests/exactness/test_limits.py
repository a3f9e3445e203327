"""Limits hold to the last request and token: 64 clients at once, in one process and in four, with clients that leave and an
upstream that fails."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.crowd import Crowd, Seen, moody
from tests.faults.upstream import Upstream, playing
from tests.processes import Serving, serving
from tests.redis_server import RedisServer

KEY = "sk-crowd-0123456789abcdef"

RESERVATION = 400
"""More than any request of a crowd holds: its bytes and its longest answer."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with playing(moody) as upstream:
        yield upstream


def config(upstream: Upstream, role: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "backends": [{"name": "up", "engine": "openai", "base_url": upstream.base_url, "breaker": False}],
        "models": [{"name": "up", "route": ["up"]}],
        "roles": [{"name": "limited", "limits": role}],
        "keys": [{"name": "crowd", "key_env": "CROWD_KEY", "role": "limited"}],
        **more,
    }


@pytest.fixture(params=["one process", "four on Redis"])
def gateways(request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream) -> Iterator[Any]:
    """`start(limits)` gives the gateways that share these limits."""
    with ExitStack() as stack:

        def start(limits: list[dict[str, Any]]) -> list[Serving]:
            if request.param == "one process":
                homes, more = ["one"], {}
            else:
                redis: RedisServer = request.getfixturevalue("redis_server")
                redis.say("FLUSHALL")
                homes, more = ["a", "b", "c", "d"], {"limits": {"store": redis.url, "timeout_s": 10}}
            started = []
            for home in homes:
                (tmp_path / home).mkdir()
                started.append(
                    stack.enter_context(serving(tmp_path / home, config(upstream, limits, **more), {"CROWD_KEY": KEY}))
                )
            return started

        yield start


def ask(gateways: Sequence[Serving], **options: Any) -> Seen:
    return asyncio.run(Crowd([gateway.url for gateway in gateways], KEY, **options).ask())


def ledger(gateways: Sequence[Serving]) -> list[dict[str, Any]]:
    """The rows of all of them, once they have stopped."""
    rows: list[dict[str, Any]] = []
    for gateway in gateways:
        gateway.stop()
        with sqlite3.connect(gateway.home / "chasqui.db") as database:
            database.row_factory = sqlite3.Row
            rows += [dict(row) for row in database.execute("SELECT * FROM requests")]
        database.close()
    return rows


def test_a_thousand_requests_are_a_thousand_answers(gateways: Any, upstream: Upstream) -> None:
    started = gateways([{"per": "1h", "requests": 1000}])
    seen = ask(started)
    assert seen.statuses == {200: 1000, 429: 64}
    assert len(set(seen.complete)) == 1000
    rows = ledger(started)
    assert Counter(row["status"] for row in rows) == {200: 1000, 429: 64}
    assert sum(row["admitted"] for row in rows) == 1000


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_requests_are_admitted_when_clients_leave_and_the_upstream_fails(
    gateways: Any, upstream: Upstream, seed: int
) -> None:
    started = gateways([{"per": "1h", "requests": 1000}, {"concurrent": 48}])
    seen = ask(started, leaving=0.15, failing=0.2, seed=seed, until_refused=False, requests_each=40)
    ask(started[:1], clients=1)  # of whom many were refused for their number, there may be some left
    rows = ledger(started)
    assert sum(row["admitted"] for row in rows) == 1000
    assert seen.left > 50
    assert seen.statuses[502] > 50
    assert seen.statuses[429] > 100
    done = {row["id"] for row in rows if row["outcome"] == "complete"}
    assert set(seen.complete) <= done
    assert len(seen.complete) == len(set(seen.complete))


@pytest.mark.parametrize(("leaving", "failing"), [(0.0, 0.0), (0.15, 0.2)])
def test_tokens_are_used_up_to_the_limit_and_not_one_further(
    gateways: Any, upstream: Upstream, leaving: float, failing: float
) -> None:
    limit = 20_000
    started = gateways([{"per": "1h", "tokens": limit}])
    seen = ask(started, leaving=leaving, failing=failing, requests_each=25, until_refused=False)
    assert seen.statuses[200] > 100
    ask(started[:1], clients=1)  # until nothing fits any more
    rows = ledger(started)
    used = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert limit - RESERVATION < used <= limit
