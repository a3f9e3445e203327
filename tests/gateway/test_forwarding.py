"""Images, audio, moderations, responses: handed on untouched, whatever they are."""

import hashlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.faults.upstream import Line, Received, answer_of, playing
from tests.running import Gateway, running

MP3 = os.urandom(300_000)
WAV = os.urandom(3_000_000)


def config(*urls: str, paths: list[str] | None = None, model: dict[str, Any] | None = None) -> dict[str, Any]:
    more = {"paths": paths} if paths is not None else {}
    backends = [{"name": f"up{n}", "engine": "openai", "base_url": url} | more for n, url in enumerate(urls)]
    route = [{"backend": backend["name"], "model": "theirs"} for backend in backends]
    return {"backends": backends, "models": [{"name": "m", "route": route} | (model or {})]}


def parts_of(request: Received) -> dict[str, bytes]:
    boundary = request.headers["content-type"].partition("boundary=")[2].encode()
    parts = {}
    for part in request.raw.split(b"--" + boundary)[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        parts[head.decode().lower().partition('name="')[2].partition('"')[0]] = value.removesuffix(b"\r\n")
    return parts


def test_speech_comes_back_byte_for_byte(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.answer(200, MP3, content_type="audio/mpeg")

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway:
        speech = gateway.sdk().audio.speech.create(model="m", voice="alloy", input="hello")
        assert speech.content == MP3
        assert speech.response.headers["content-type"] == "audio/mpeg"
        assert speech.response.headers["x-chasqui-backend"] == "up0"
        (seen,) = up.received
        assert (seen.path, seen.json) == ("/v1/audio/speech", {"model": "theirs", "voice": "alloy", "input": "hello"})


def test_an_upload_is_spooled_and_arrives_whole_at_the_next_station_too(tmp_path: Path) -> None:
    def failing(request: Received, line: Line) -> None:
        line.answer(500, b"{}")

    def script(request: Received, line: Line) -> None:
        line.answer(200, b'{"text": "hello", "usage": {"input_tokens": 14, "output_tokens": 2, "total_tokens": 16}}')

    with playing(failing) as first, playing(script) as second:
        with running(tmp_path, config(first.base_url, second.base_url)) as gateway:
            answer = gateway.sdk().audio.transcriptions.create(model="m", file=("a.wav", WAV), language="de")
            assert answer.text == "hello"
            for up in (first, second):
                parts = parts_of(up.received[0])
                assert (parts["model"], parts["language"], parts["file"] == WAV) == (b"theirs", b"de", True)
            with gateway.http as http:
                metrics = http.get("/metrics").text
            assert 'chasqui_tokens_total{model="m",type="input"} 14.0' in metrics
            assert 'operation="forward",outcome="complete",status="200"} 1.0' in metrics
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


def test_images_moderations_and_responses_with_the_sdk(tmp_path: Path) -> None:
    answers = {
        "/v1/images/generations": {"created": 1, "data": [{"b64_json": "aGk="}]},
        "/v1/moderations": {"id": "mod", "model": "theirs", "results": []},
        "/v1/responses": {
            "id": "r", "object": "response", "created_at": 1, "model": "theirs", "output": [], "tools": [],
            "parallel_tool_calls": False, "tool_choice": "auto", "error": None,
            "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11},
        },
    }  # fmt: skip

    def script(request: Received, line: Line) -> None:
        line.answer(200, json.dumps(answers[request.path]).encode())

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway:
        client = gateway.sdk()
        images = client.images.generate(model="m", prompt="a lama")
        assert images.data is not None
        assert images.data[0].b64_json == "aGk="
        assert client.moderations.create(model="m", input="hello").model == "m"
        response = client.responses.create(model="m", input="hello")
        assert (response.model, response.usage and response.usage.output_tokens) == ("m", 6)


def test_a_streamed_response_passes_event_by_event_and_its_tokens_count(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.start_stream()
        line.chunk(b'event: response.output_text.delta\ndata: {"delta": "hel')
        line.chunk(
            b'lo"}\n\nevent: response.completed\ndata: {"response": {"usage": {"input_tokens": 3, "output_tokens": 4}}}\n\n'
        )
        line.end_stream()

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway, gateway.http as http:
        answer = http.post("/v1/responses", json={"model": "m", "input": "hello", "stream": True})
        assert answer.text.startswith(
            'event: response.output_text.delta\ndata: {"delta": "hello"}\n\nevent: response.completed'
        )
        assert 'chasqui_tokens_total{model="m",type="output"} 4.0' in http.get("/metrics").text


@pytest.mark.parametrize(
    ("kind", "expected"), [("text/event-stream", "error event"), ("audio/mpeg", "cut"), ("application/json", "502")]
)
def test_an_answer_that_breaks_never_looks_whole(tmp_path: Path, kind: str, expected: str) -> None:
    def script(request: Received, line: Line) -> None:
        line.start_stream(kind)
        line.chunk(b'data: {"delta": "hel"}\n\n')
        line.reset()

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway, gateway.http as http:
        body = {"model": "m", "input": "hello"}
        if expected == "cut":
            with pytest.raises(httpx.RemoteProtocolError):
                http.post("/v1/audio/speech", json=body)
            return
        answer = http.post("/v1/responses", json=body)
        if expected == "502":
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
        else:
            assert answer.text.endswith('"code":"upstream_error"}}\n\n')


def test_a_slow_client_does_not_make_the_gateway_keep_the_answer(tmp_path: Path) -> None:
    sent, size = threading.Event(), 64 * 1024 * 1024

    def script(request: Received, line: Line) -> None:
        line.send(f"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: {size}\r\n\r\n".encode())
        for _ in range(size // 65536):
            line.send(b"\0" * 65536)
        sent.set()

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        body = b'{"model": "m", "input": "hello"}'
        head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.sendall(head.encode() + body)
            begun = client.recv(1000)
            assert begun.startswith(b"HTTP/1.1 200")
            assert not sent.wait(0.5), "the upstream could send all of it though the client reads nothing"
            received = len(begun.partition(b"\r\n\r\n")[2])
            while received < size:
                received += len(client.recv(1 << 20))
        assert sent.wait(10)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/audio/../chat/completions", "/v1/audio/%2e%2e/models", "/v1/audio/a%2fb", "/v1/audio//speech", "/v1/audio/",
        "/v1/audio/%5c", "/v1/audio/sp%65ech", "/v1/audio/./speech", "/v1/nothing",
    ],
)  # fmt: skip
def test_what_is_not_plain_or_not_configured_is_not_there(tmp_path: Path, path: str) -> None:
    def script(request: Received, line: Line) -> None:
        line.answer(200, b"{}")

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        body = b'{"model": "m"}'
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(head.encode() + body)
            answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404"), answer
        assert b'"code":"not_found"' in answer
        assert up.received == []


def test_only_backends_that_name_the_path_get_it(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.answer(200, answer_of("hello"))

    with playing(script) as up, running(tmp_path, config(up.base_url, paths=["/v1/moderations"])) as gateway:
        client = gateway.sdk()
        client.moderations.create(model="m", input="x")
        with pytest.raises(openai.NotFoundError):
            client.responses.create(model="m", input="x")


BAD = {
    "no model": (
        b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n',
        "multipart/form-data; boundary=b",
    ),
    "no end": (b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm', "multipart/form-data; boundary=b"),
    "no boundary": (b"--b--", "multipart/form-data"),
    "no form": (b"hello", "multipart/form-data; boundary=b"),
    "another kind": (b"hello", "text/plain"),
    "no JSON": (b"hello", "application/json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bodies_are_told_so(tmp_path: Path, name: str) -> None:
    body, kind = BAD[name]
    with (
        playing(lambda request, line: line.answer(200, b"{}")) as up,
        running(tmp_path, config(up.base_url)) as gateway,
        gateway.http as http,
    ):
        answer = http.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert up.received == []


def test_keys_limits_and_sizes_hold(tmp_path: Path) -> None:
    with playing(lambda request, line: line.answer(200, b"{}")) as up:
        role = {"name": "one", "limits": [{"per": "1h", "requests": 1}]}
        settings = config(up.base_url) | {"roles": [role], "server": {"max_body_mb": 1}}
        with running(tmp_path, settings) as gateway, gateway.http as http:
            files = {"file": ("a.wav", WAV)}
            assert http.post("/v1/audio/transcriptions", data={"model": "m"}, files=files).status_code == 413
            body: dict[str, Any] = {"json": {"model": "m"}}
            assert http.post("/v1/moderations", **body, headers={"authorization": "Bearer sk-no"}).status_code == 401
            assert http.post("/v1/moderations", json={"model": "other"}).status_code == 404
            headers = {"authorization": f"Bearer {gateway.new_key(role='one')}"}
            answers = [http.post("/v1/moderations", **body, headers=headers).status_code for _ in range(2)]
            assert answers == [200, 429]


def test_a_template_cannot_be_passed_by(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\nversion: 1\nstage: prod\nmessages: [{role: user, content: 'Say {{ text }}'}]\n"
    )
    with playing(lambda request, line: line.answer(200, b"{}")) as up:
        settings = config(up.base_url, model={"prompt": "p"}) | {"prompts": {"paths": [str(tmp_path / "p.yaml")]}}
        with running(tmp_path, settings) as gateway, gateway.http as http:
            answer = http.post("/v1/responses", json={"model": "m", "input": "x"})
            assert (answer.status_code, up.received) == (400, [])


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_gateway_is_used_by_many_at_once(tmp_path: Path) -> None:
    """Uploads at the same time stay apart."""

    def script(request: Received, line: Line) -> None:
        line.answer(200, json.dumps({"text": digest(parts_of(request)["file"])}).encode())

    def upload(gateway: Gateway, data: bytes, results: dict[str, str]) -> None:
        results[digest(data)] = gateway.sdk().audio.transcriptions.create(model="m", file=("a.wav", data)).text

    with playing(script) as up, running(tmp_path, config(up.base_url)) as gateway:
        results: dict[str, str] = {}
        uploads = [os.urandom(1_500_000 + number) for number in range(6)]
        threads = [threading.Thread(target=upload, args=(gateway, data, results)) for data in uploads]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results == {digest(data): digest(data) for data in uploads}
