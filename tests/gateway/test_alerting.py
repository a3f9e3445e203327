"""A webhook hears of budgets that are nearly used up: once each, signed, and again as long as it does not take it."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.upstream import Line, Received, Upstream, answer_of, playing
from tests.running import Gateway, running

CHAT = "/v1/chat/completions"
SECRET = "whsec_" + base64.b64encode(b"the secret of the hook").decode()


class Hook:
    """What was heard, and how to answer."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], Any]] = []
        self.arrived = threading.Semaphore(0)
        self.statuses: list[int] = []

    def play(self, request: Received, line: Line) -> None:
        status = self.statuses.pop(0) if self.statuses else 204
        self.heard.append((request.headers, request.raw))
        line.answer(status, b"")
        self.arrived.release()

    def next(self) -> tuple[dict[str, str], dict[str, Any]]:
        assert self.arrived.acquire(timeout=20)
        headers, raw = self.heard[-1]
        return headers, json.loads(raw)


@pytest.fixture
def hook() -> Hook:
    return Hook()


@pytest.fixture
def gateway(tmp_path: Path, hook: Hook) -> Iterator[Gateway]:
    usage = {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}
    with (
        playing(lambda _, line: line.answer(200, answer_of("hi", usage=usage))) as upstream,
        playing(hook.play) as ear,
        running(tmp_path, config(upstream, ear), {"HOOK_SECRET": SECRET}) as gateway,
    ):
        yield gateway


def config(upstream: Upstream, ear: Upstream) -> dict[str, Any]:
    return {
        "backends": [{"name": "up", "engine": "openai", "base_url": upstream.base_url}],
        "models": [{"name": "gpt", "route": ["up"], "price": {"input_per_m": 1000}}],
        "limits": {"alerts": {"url": f"{ear.base_url}/hook", "secret_env": "HOOK_SECRET", "measures": ["cost_usd"]}},
    }


def spend(gateway: Gateway, key: str, dimes: int) -> None:
    """Ten cents each."""
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}) as http:
        for _ in range(dimes):
            body = {"model": "gpt", "messages": [], "max_tokens": 1}
            assert http.post(CHAT, json=body).status_code == 200


def test_each_threshold_is_told_once_and_signed(gateway: Gateway, hook: Hook) -> None:
    key = gateway.new_key(name="spender", limits=[{"per": "month", "cost_usd": 1}, {"per": "1d", "requests": 5_000}])
    spend(gateway, key, 8)
    headers, event = hook.next()
    assert event["type"] == "limit.threshold"
    data = event["data"]
    assert (data["key_name"], data["measure"], data["per"], data["limit"]) == ("spender", "cost_usd", "month", 1)
    assert (data["threshold"], data["used"]) == (0.8, pytest.approx(0.8))
    assert data["key"].startswith("key_")
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + hook.heard[-1][1]
    digest = hmac.digest(b"the secret of the hook", signed, hashlib.sha256)
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert headers["webhook-id"] == event["id"]
    spend(gateway, key, 1)
    spend(gateway, key, 1)
    _, event = hook.next()
    assert event["data"]["threshold"] == 1.0
    assert len(hook.heard) == 2


def test_it_is_told_again_until_it_is_heard_and_keeps_no_other_back(gateway: Gateway, hook: Hook) -> None:
    hook.statuses = [500, 404]
    spend(gateway, gateway.new_key(limits=[{"per": "1d", "cost_usd": 0.1}]), 1)
    told = [hook.next() for _ in range(4)]
    del told
    events = [json.loads(raw) for _, raw in hook.heard]
    assert sorted(event["data"]["threshold"] for event in events) == [0.8, 0.8, 1.0, 1.0]
    assert len({event["id"] for event in events}) == 2
