"""Redis and PostgreSQL stopped, frozen and back: requests are answered as configured, in time, never with 401, and nothing that
was used is lost."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.crowd import CHAT, USAGE, Crowd, moody
from tests.exactness.test_limits import KEY, config
from tests.faults.upstream import Upstream, playing
from tests.postgresql import Postgres, running_postgres
from tests.processes import Serving, serving
from tests.redis_server import RedisServer, running_redis

TIMEOUT_S = 0.4
SLACK_S = 3.0
"""For a busy machine."""

ASK = {"model": "up", "messages": [], "max_tokens": 1}


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with playing(moody) as upstream:
        yield upstream


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """One that may be stopped."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


def shared(upstream: Upstream, redis: RedisServer, on_store_down: str, requests: int) -> dict[str, Any]:
    limits = {"store": redis.url, "timeout_s": TIMEOUT_S, "on_store_down": on_store_down}
    role = [{"per": "1h", "requests": requests}, {"per": "1h", "tokens": 10_000_000}, {"concurrent": 64}]
    return config(upstream, role, limits=limits)


def statuses(gateway: Serving, number: int) -> list[int]:
    """Of so many requests at once; none may take longer than the store's timeout and some slack."""

    def ask(_: int) -> int:
        began = time.monotonic()
        with gateway.client(KEY) as http:
            status = http.post(CHAT, json=ASK).status_code
        assert time.monotonic() - began < TIMEOUT_S + SLACK_S
        return status

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(ask, range(number)))


def answer_of(gateway: Serving, status: int) -> httpx.Response:
    """Asks until it is answered with this; the test's own timeout bounds it."""
    with gateway.client(KEY) as http:
        while True:
            answer = http.post(CHAT, json=ASK)
            assert answer.status_code != 401
            if answer.status_code == status:
                return answer


def wait_until(done: Callable[[], bool]) -> None:
    while not done():
        pass


@pytest.mark.parametrize("how", ["stop", "freeze"])
def test_without_redis_nobody_is_let_in_and_everybody_is_told_so_in_time(
    tmp_path: Path, upstream: Upstream, own_redis: RedisServer, how: str
) -> None:
    with serving(tmp_path, shared(upstream, own_redis, "deny", 1000), {"CROWD_KEY": KEY}) as gateway:
        assert statuses(gateway, 5) == [200] * 5
        getattr(own_redis, how)()
        for _ in range(3):
            assert statuses(gateway, 16) == [503] * 16
        with gateway.client(KEY) as http:
            refused = http.post(CHAT, json=ASK)
            assert refused.json()["error"]["code"] == "store_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            ready = http.get("/health/ready")
            assert (ready.status_code, ready.json()["limits"]) == (503, "failed")
            assert 'chasqui_quota_store_down_total{decision="denied"}' in http.get("/metrics").text
            assert http.get("/v1/models").status_code == 200
        own_redis.thaw() if how == "freeze" else own_redis.start()
        # One that was stopped is told by the ledger what was used. One that was frozen may have let some in whom nobody waits for
        # any more; they are given back.
        answers = 5

        def counts_are_right() -> bool:
            nonlocal answers
            answers += 1
            return int(answer_of(gateway, 200).headers["x-ratelimit-remaining-requests"]) == 1000 - answers

        wait_until(counts_are_right)
        with gateway.client(KEY) as http:
            assert http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("how", ["stop", "freeze"])
def test_where_requests_go_on_without_redis_they_are_counted_when_it_is_back(
    tmp_path: Path, upstream: Upstream, own_redis: RedisServer, how: str
) -> None:
    with serving(tmp_path, shared(upstream, own_redis, "allow", 30), {"CROWD_KEY": KEY}) as gateway:
        assert statuses(gateway, 5) == [200] * 5
        getattr(own_redis, how)()
        assert statuses(gateway, 16) == [200] * 16
        assert sorted(statuses(gateway, 16)) == [200] * 14 + [429] * 2, "one process alone still keeps to its limits"
        with gateway.client() as http:
            ready = http.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
            assert 'chasqui_quota_store_down_total{decision="allowed"}' in http.get("/metrics").text
        own_redis.thaw() if how == "freeze" else own_redis.start()
        answer = answer_of(gateway, 429)
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        wait_until(lambda: answer_of(gateway, 429).headers["x-ratelimit-remaining-requests"] == "0")


def test_a_flushed_redis_is_told_what_was_used(tmp_path: Path, upstream: Upstream, own_redis: RedisServer) -> None:
    with serving(tmp_path, shared(upstream, own_redis, "deny", 20), {"CROWD_KEY": KEY}) as gateway:
        assert statuses(gateway, 12) == [200] * 12
        own_redis.say("FLUSHALL")
        own_redis.say("SCRIPT FLUSH")
        answer = answer_of(gateway, 200)
        assert int(answer.headers["x-ratelimit-remaining-requests"]) == 20 - 13
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 10_000_000 - 13 * USAGE["total_tokens"]


def test_without_postgresql_requests_go_on_and_their_rows_wait_in_the_journal(
    tmp_path: Path, upstream: Upstream, own_postgres: Postgres
) -> None:
    stored = config(upstream, [{"per": "1d", "requests": 1_000_000}], store={"url": own_postgres.empty_database()})
    with serving(tmp_path, stored, {"CROWD_KEY": KEY}) as gateway:
        crowd = Crowd([gateway.url], KEY, clients=8, requests_each=20)
        asyncio.run(crowd.ask())
        own_postgres.stop()
        try:
            asyncio.run(crowd.ask())
            assert crowd.seen.statuses == {200: 320}
            gateway.kill()
            assert sum(path.stat().st_size for path in (tmp_path / "journal").glob("*.log")) > 50_000
        finally:
            own_postgres.start()
        gateway.start()
        crowd.urls = [gateway.url]
        asyncio.run(crowd.ask())
        own_postgres.stop()
        asyncio.run(crowd.ask())
        own_postgres.start()
        with gateway.client() as http:
            wait_until(lambda: admitted(http) >= 640)
            assert admitted(http) == 640
            pages = [http.get("/admin/requests", params={"limit": 1000}).json()]
        assert {row["id"] for page in pages for row in page["data"]} == set(crowd.seen.complete)


def admitted(http: httpx.Client) -> int:
    answer = http.get("/admin/usage", params={"group_by": "key"})
    assert answer.status_code in (200, 503)
    return sum(row["requests"] for row in answer.json().get("data", []))
