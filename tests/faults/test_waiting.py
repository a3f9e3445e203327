"""Clients who wait: pings before the first event, hedging, probes; and those who are cut short by a stop."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.upstream import Line, Received, Upstream, answer_of, chunk_of, playing
from tests.running import Gateway, running

ASK = [{"role": "user", "content": "hi"}]


def backend(upstream: Upstream, name: str = "up", **more: Any) -> dict[str, Any]:
    return {"name": name, "engine": "openai", "base_url": upstream.base_url} | more


def stream_lines(gateway: Gateway, on_line: Callable[[str], None] = lambda line: None) -> tuple[int, list[str]]:
    """Status and lines of a streamed answer, blank ones left out."""
    lines = []
    body = {"model": "m", "messages": ASK, "stream": True}
    with gateway.http as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line:
                lines.append(line)
                on_line(line)
    return answer.status_code, lines


def streamed(line: Line, text: str) -> None:
    line.start_stream()
    line.event(chunk_of(text, finish="stop"))
    line.event("[DONE]")
    line.end_stream()


# Pings


def test_a_client_who_waits_for_the_first_event_is_pinged(tmp_path: Path) -> None:
    go_on = threading.Event()

    def script(request: Received, line: Line) -> None:
        go_on.wait(10)
        streamed(line, "hello")

    config = {"server": {"keepalive_s": 0.05}, "models": [{"name": "m", "route": ["up"]}]}
    with playing(script) as up, running(tmp_path, config | {"backends": [backend(up)]}) as gateway:
        status, lines = stream_lines(gateway, lambda line: go_on.set())
        assert (status, lines[0], lines[-1]) == (200, ": ping", "data: [DONE]")
        assert [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")] == [
            {"content": "hello"}
        ]
        go_on.set()
        stream = gateway.sdk().chat.completions.create(model="m", messages=ASK, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "hello"


def test_after_a_ping_a_failure_is_an_error_event_and_a_fallback_still_helps(tmp_path: Path) -> None:
    go_on = threading.Event()

    def failing(request: Received, line: Line) -> None:
        go_on.wait(10)
        line.answer(500, b"{}")

    def helping(request: Received, line: Line) -> None:
        streamed(line, "help")

    for route, last in ((["up"], "error"), (["up", "spare"], "[DONE]")):
        go_on.clear()
        home = tmp_path / last
        home.mkdir()
        with playing(failing) as up, playing(helping) as spare:
            config = {
                "server": {"keepalive_s": 0.05},
                "backends": [backend(up), backend(spare, "spare")],
                "models": [{"name": "m", "route": route}],
            }
            with running(home, config) as gateway:
                status, lines = stream_lines(gateway, lambda line: go_on.set())
                assert (status, lines[0]) == (200, ": ping")
                assert last in lines[-1]


def test_nobody_is_pinged_unless_the_operator_wants_it(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.pause(0.2)
        streamed(line, "hello")

    config = {"models": [{"name": "m", "route": ["up"]}]}
    with playing(script) as up, running(tmp_path, config | {"backends": [backend(up)]}) as gateway:
        assert not [line for line in stream_lines(gateway)[1] if line.startswith(":")]


# Hedging


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_station_is_overtaken_by_the_next_one_and_let_go(tmp_path: Path, stream: bool) -> None:
    left = threading.Event()

    def silent(request: Received, line: Line) -> None:
        if line.wait_until_peer_leaves():
            left.set()

    def quick(request: Received, line: Line) -> None:
        streamed(line, "quick") if stream else line.answer(200, answer_of("quick"))

    with playing(silent) as up, playing(quick) as spare:
        config = {
            "backends": [backend(up), backend(spare, "spare")],
            "models": [{"name": "m", "route": ["up", "spare"], "hedge_after_s": 0.1}],
        }
        with running(tmp_path, config) as gateway, gateway.http as http:
            body = {"model": "m", "messages": ASK, "stream": stream}
            answer = http.post("/v1/chat/completions", json=body)
            assert "quick" in answer.text
            assert (answer.headers["x-chasqui-backend"], answer.headers["x-chasqui-attempts"]) == ("spare", "2")
            assert left.wait(5)
            assert gateway.services.backends["up"].facts.in_flight == 0


def test_a_station_that_answers_in_time_is_not_hedged_and_both_failing_is_a_failure(tmp_path: Path) -> None:
    fail = threading.Event()

    def first(request: Received, line: Line) -> None:
        if fail.is_set():
            line.pause(0.3)
            line.answer(500, b"{}")
        else:
            line.answer(200, answer_of("first"))

    def second(request: Received, line: Line) -> None:
        line.answer(500, b"{}")

    with playing(first) as up, playing(second) as spare:
        config = {
            "backends": [backend(up), backend(spare, "spare")],
            "models": [{"name": "m", "route": ["up", "spare"], "hedge_after_s": 0.1}],
        }
        with running(tmp_path, config) as gateway, gateway.http as http:
            body = {"model": "m", "messages": ASK}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
            assert spare.received == []
            fail.set()
            assert http.post("/v1/chat/completions", json=body).status_code == 502
            assert (len(up.received), len(spare.received)) == (2, 1)


# Probes


def test_a_probe_opens_the_breaker_and_closes_it(tmp_path: Path) -> None:
    well = threading.Event()

    def script(request: Received, line: Line) -> None:
        if not well.is_set():
            line.answer(503, b"{}")
        elif request.path.endswith("/models"):
            line.answer(200, b'{"data": []}')
        else:
            line.answer(200, answer_of("hello"))

    probe = {"path": "/models", "every_s": 0.02, "timeout_s": 5}
    with playing(script) as up:
        settings = backend(up, probe=probe, breaker={"failures": 2, "open_s": 600})
        config = {"backends": [settings], "models": [{"name": "m", "route": ["up"]}]}
        with running(tmp_path, config) as gateway, gateway.http as http:
            wait_until(lambda: http.get("/health/ready").json()["backends"]["up"] == "failed")
            assert http.post("/v1/chat/completions", json={"model": "m", "messages": ASK}).status_code == 503
            well.set()
            wait_until(lambda: http.get("/health/ready").json()["backends"]["up"] == "ready")
            assert http.post("/v1/chat/completions", json={"model": "m", "messages": ASK}).status_code == 200
    assert {one.path for one in up.received} == {"/v1/models", "/v1/chat/completions"}


def wait_until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline_s


# Stopping


def test_at_a_stop_streams_may_end_and_those_that_do_not_get_an_error_event(tmp_path: Path) -> None:
    stopping = threading.Event()

    def script(request: Received, line: Line) -> None:
        line.start_stream()
        line.event(chunk_of("begun"))
        stopping.wait(10)
        if "ends" in request.json["messages"][0]["content"]:
            line.pause(0.1)
            line.event(chunk_of(" and ended", finish="stop"))
            line.event("[DONE]")
            line.end_stream()
        else:
            line.wait_until_peer_leaves()

    results: dict[str, str] = {}

    def follow(gateway: Gateway, words: str, begun: threading.Barrier) -> None:
        body = {"model": "m", "messages": [{"role": "user", "content": words}], "stream": True}
        with gateway.http as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            text = answer.iter_text()
            results[words] = next(text)
            begun.wait(10)
            results[words] += "".join(text)

    config = {"server": {"shutdown_s": 0.5}, "models": [{"name": "m", "route": ["up"]}]}
    with playing(script) as up, running(tmp_path, config | {"backends": [backend(up)]}) as gateway:
        begun = threading.Barrier(3)
        followers = [threading.Thread(target=follow, args=(gateway, words, begun)) for words in ("ends", "goes on")]
        for follower in followers:
            follower.start()
        begun.wait(10)
        gateway.server.should_exit = True
        stopping.set()
        for follower in followers:
            follower.join(10)
        with pytest.raises(httpx.ConnectError), gateway.http as http:
            http.get("/health")
    assert results["ends"].endswith("data: [DONE]\n\n")
    last = json.loads(results["goes on"].strip().split("\n\n")[-1].removeprefix("data: "))
    assert (last["error"]["code"], "stopping" in last["error"]["message"]) == ("backend_unavailable", True)
    assert "[DONE]" not in results["goes on"]
