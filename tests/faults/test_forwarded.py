"""Paths beside chat and completions keep the same promises: a cut never looks whole, the first byte decides, what was used counts."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.upstream import Line, Received, Script, answer_of, chunk_of, playing
from tests.running import Gateway, running

DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"hello, all of you"}\n\n'
)
END = b'event: response.completed\ndata: {"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}\n\n'
SECRET = "upstream-secret-123"


def config(*urls: str, **more: Any) -> dict[str, Any]:
    backends = [
        {"name": f"up{n}", "engine": "openai", "base_url": url, "api_key_env": "UP_KEY"} | more
        for n, url in enumerate(urls)
    ]
    route = [backend["name"] for backend in backends]
    roles = [{"name": "few", "limits": [{"per": "1h", "tokens": 100_000}, {"concurrent": 2}]}]
    return {"backends": backends, "models": [{"name": "m", "route": route}], "roles": roles}


def ask(gateway: Gateway, path: str = "/v1/responses", **body: Any) -> httpx.Response:
    with gateway.http as http:
        return http.post(path, json={"model": "m", "input": "hi", "stream": True} | body)


def events(*pieces: bytes, cut: bool = False) -> Script:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        for piece in pieces:
            line.chunk(piece)
        if not cut:
            line.end_stream()

    return script


def whole(body: bytes, kind: str = "application/json") -> Script:
    def script(request: Received, line: Line) -> None:
        line.answer(200, body, content_type=kind)

    return script


@pytest.mark.parametrize(
    "part",
    ["output_text.done", "reasoning_summary_text.done", "web_search_call.completed", "function_call_arguments.done"],
)
def test_the_end_of_a_part_is_not_the_end(tmp_path: Path, part: str) -> None:
    ending = b"data: " + json.dumps({"type": f"response.{part}"}).encode() + b"\n\n"
    with playing(events(DELTA, ending)) as up, running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway:
        assert '"code":"upstream_error"' in ask(gateway).text


@pytest.mark.parametrize("last", ["image_generation.completed", "speech.audio.done", "transcript.text.done"])
def test_other_streams_have_ends_of_other_names(tmp_path: Path, last: str) -> None:
    ending = b"data: " + json.dumps({"type": last}).encode() + b"\n\n"
    with playing(events(ending)) as up, running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway:
        assert ask(gateway, "/v1/audio/speech").content == ending


def test_a_stream_that_stops_before_its_end_is_broken(tmp_path: Path) -> None:
    with playing(events(DELTA)) as up, running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway:
        text = ask(gateway).text
        assert text.startswith(DELTA.decode())
        assert '"code":"upstream_error"' in text.rsplit("event: error", 1)[1]
        assert "broken" in metrics(gateway)


def metrics(gateway: Gateway) -> str:
    with gateway.http as http:
        lines = http.get("/metrics").text.splitlines()
    return "\n".join(line for line in lines if line.startswith("chasqui_requests_total"))


@pytest.mark.parametrize(
    "first",
    [
        events(b'event: error\ndata: {"type":"error","message":"overloaded"}\n\n'),
        events(b'data: {"error":{"message":"overloaded"}}\n\n'),
        events(b": nothing\n\n"),
        events(),
        whole(b"<html>down</html>", "text/html"),
        whole(b'{"error":{"message":"down"}}'),
        whole(b"", "application/json"),
        whole(b"{", "application/json"),
    ],
)
def test_what_fails_before_the_first_event_is_a_status_and_the_next_station_helps(
    tmp_path: Path, first: Script
) -> None:
    with playing(first) as up, playing(events(DELTA, END)) as spare:
        with running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway:
            assert ask(gateway).status_code == 502
        with running(tmp_path, config(up.base_url, spare.base_url), {"UP_KEY": SECRET}) as gateway:
            answer = ask(gateway)
            assert (answer.status_code, answer.headers["x-chasqui-backend"]) == (200, "up1")
            assert answer.content == DELTA + END


def test_who_leaves_early_pays_for_what_was_sent(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        for _ in range(20):
            line.chunk(DELTA)
        line.wait_until_peer_leaves()

    with playing(script) as up, running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway:
        gateway.key = gateway.new_key(role="few")
        for _ in range(3):  # two slots at a time: they are given back
            body = {"model": "m", "input": "hi", "stream": True}
            with gateway.http as http, http.stream("POST", "/v1/responses", json=body) as answer:
                assert answer.status_code == 200
                next(answer.iter_raw())
        with gateway.http as http:
            while http.get("/metrics").text.count('client_left",status="200"} 3.0') == 0:
                pass
            tokens = [line for line in http.get("/metrics").text.splitlines() if 'type="output"' in line]
        assert float(tokens[0].rsplit(" ", 1)[1]) >= 3 * len("hello, all of you") // 4


def test_a_dripping_answer_has_the_deadline_of_whole_answers(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
        while True:
            line.send(b" ")
            line.pause(0.02)

    limits = {"timeouts": {"total_s": 0.3}}
    with playing(script) as up, running(tmp_path, config(up.base_url, **limits), {"UP_KEY": SECRET}) as gateway:
        assert ask(gateway, stream=False).status_code == 504


def test_at_a_stop_it_ends_in_an_error_event(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        line.chunk(DELTA)
        line.wait_until_peer_leaves()

    begun, seen = threading.Event(), []

    def follow(gateway: Gateway) -> None:
        body = {"model": "m", "input": "hi", "stream": True}
        with gateway.http as http, http.stream("POST", "/v1/responses", json=body) as answer:
            for text in answer.iter_text():
                seen.append(text)
                begun.set()

    settings = config("http://127.0.0.1:1") | {"server": {"shutdown_s": 0.2}}
    with playing(script) as up:
        settings["backends"][0]["base_url"] = up.base_url
        with running(tmp_path, settings, {"UP_KEY": SECRET}) as gateway:
            follower = threading.Thread(target=follow, args=(gateway,))
            follower.start()
            assert begun.wait(10)
            gateway.server.should_exit = True
            follower.join(10)
    assert "the gateway is stopping" in "".join(seen)


# Secrets


def echo(request: Received) -> str:
    return f"I got {request.headers['authorization'].removeprefix('Bearer ')}"


def echoing(request: Received, line: Line) -> None:
    words = echo(request)
    body = request.json
    match body["messages"][0]["content"] if "messages" in body else body["input"]:
        case "stream":
            line.start_stream()
            line.event(chunk_of(words))
            line.event(chunk_of("", finish="stop"))
            line.event("[DONE]")
            line.end_stream()
        case "whole":
            line.answer(200, answer_of(words), retry_after=words, openai_processing_ms=words)
        case "refused":
            error = {"message": words, "type": words, "code": words, "param": words}
            line.answer(400, json.dumps({"error": error}).encode(), retry_after=words)
        case "events":
            line.start_stream()
            line.chunk(b"data: " + json.dumps({"type": "response.completed", "x": words}).encode() + b"\n\n")
            line.end_stream()
        case "json":
            line.answer(200, json.dumps({"x": words}).encode(), content_disposition=words)


@pytest.mark.parametrize("how", ["stream", "whole", "refused", "events", "json"])
def test_an_upstream_that_repeats_its_key_is_not_repeated(tmp_path: Path, how: str) -> None:
    with (
        playing(echoing) as up,
        running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway,
        gateway.http as http,
    ):
        if how in ("events", "json"):
            answer = http.post("/v1/responses", json={"model": "m", "input": how})
        else:
            messages = [{"role": "user", "content": how}]
            answer = http.post(
                "/v1/chat/completions", json={"model": "m", "messages": messages, "stream": how == "stream"}
            )
        assert answer.status_code == (400 if how == "refused" else 200)
        everything = answer.text + str(answer.headers) + http.get("/metrics").text
        assert SECRET not in everything
        assert "[redacted]" in answer.text
    assert SECRET not in "".join(gateway.log)


# Names given twice


def test_a_form_with_two_models_or_two_names_is_refused(tmp_path: Path) -> None:
    parts = [
        'name="model"\r\n\r\nm\r\n--b\r\ncontent-disposition: form-data; name="model"; filename="f"\r\n\r\nother',
        'name="model"\r\n\r\nm\r\n--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nother',
        'name="model"\r\n\r\nm\r\n--b\r\ncontent-disposition: form-data; name="x"; name*=utf-8\'\'model\r\n\r\nother',
        'name="model"\r\n\r\nm\r\n--b\r\ncontent-disposition: form-data; name="x"; name="model"\r\n\r\nother',
    ]
    with playing(whole(b"{}")) as up, running(tmp_path, config(up.base_url), {"UP_KEY": SECRET}) as gateway:
        for part in parts:
            body = f"--b\r\ncontent-disposition: form-data; {part}\r\n--b--\r\n".encode()
            with gateway.http as http:
                headers = {"content-type": "multipart/form-data; boundary=b"}
                answer = http.post("/v1/audio/transcriptions", content=body, headers=headers)
            assert answer.status_code == 400, part
        assert up.received == []


def test_a_deployments_name_cannot_walk_up_the_address(tmp_path: Path) -> None:
    with playing(whole(answer_of("hello"))) as up:
        settings = config(up.base_url.replace("/v1", "/deployments/{model}"))
        settings["models"] = [{"name": "az/*", "route": [{"backend": "up0", "model": "*"}]}]
        with running(tmp_path, settings, {"UP_KEY": SECRET}) as gateway, gateway.http as http:
            messages = [{"role": "user", "content": "hi"}]
            for name in ("az/..", "az/."):
                answer = http.post("/v1/chat/completions", json={"model": name, "messages": messages})
                assert answer.status_code == 400
        assert up.received == []
