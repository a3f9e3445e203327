"""A worker that is killed costs its own requests a clear error; the gateway lives and the next request works."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import Gateway, running

LONG = {
    "model": "guide",
    "messages": [{"role": "user", "content": "Go"}],
    "max_tokens": 60_000,
    "logit_bias": {},
    "stream": True,
}


@pytest.fixture
def gateway(tmp_path: Path, synthetic_gguf: Path) -> Iterator[Gateway]:
    config = {
        "backends": [
            {"name": "chat", "engine": "llama_cpp", "model": str(synthetic_gguf), "context_tokens": 65536, "slots": 8}
        ],
        "models": [{"name": "guide", "route": ["chat"]}],
        "roles": [{"name": "default"}],
    }
    with running(tmp_path, config) as gateway:
        yield gateway


def test_kill_nine_in_the_middle_of_a_stream(gateway: Gateway) -> None:
    end = {str(gateway_end_token()): -100}
    with gateway.http as http:
        with http.stream("POST", "/v1/chat/completions", json=LONG | {"logit_bias": end}) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            assert json.loads(first.removeprefix("data: "))["choices"]
            os.kill(worker_pid(gateway), signal.SIGKILL)
            rest = [line.removeprefix("data: ") for line in lines if line]
        failure = json.loads(rest[-1])["error"]
        assert failure["code"] == "upstream_error"
        assert "[DONE]" not in rest
        assert http.get("/health").status_code == 200
        again = http.post("/v1/chat/completions", json=LONG | {"max_tokens": 5, "stream": False})
        assert again.status_code == 200
        assert 'chasqui_worker_restarts_total{backend="chat"} 1.0' in http.get("/metrics").text


def worker_pid(gateway: Gateway) -> int:
    pid = gateway.services.backends["chat"].inner.pid  # type: ignore[attr-defined]
    assert isinstance(pid, int)
    return pid


def gateway_end_token() -> int:
    """The token that ends a turn in the synthetic vocabulary; forbidden, so that the answer is long."""
    from backends.llamacpp.synthetic import vocabulary

    return vocabulary()[0].index(b"<|end|>")


def test_kill_nine_under_eight_streams_is_eight_clear_errors(gateway: Gateway) -> None:
    body = LONG | {"logit_bias": {str(gateway_end_token()): -100}, "max_tokens": 6000}
    begun, ends = threading.Barrier(9, timeout=30), []

    def stream() -> None:
        with gateway.http as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            begun.wait()
            ends.append([line.removeprefix("data: ") for line in lines if line][-1])

    clients = [threading.Thread(target=stream) for _ in range(8)]
    for client in clients:
        client.start()
    begun.wait()
    os.kill(worker_pid(gateway), signal.SIGKILL)
    for client in clients:
        client.join(30)
    assert [json.loads(end)["error"]["code"] for end in ends] == ["upstream_error"] * 8
    with gateway.http as http:
        again = http.post("/v1/chat/completions", json=LONG | {"max_tokens": 5, "stream": False})
    assert again.status_code == 200


def test_a_worker_that_dies_before_the_first_byte_costs_nobody_anything(tmp_path: Path, synthetic_gguf: Path) -> None:
    """The route's next station answers where the worker does not come back."""
    chat = {"engine": "llama_cpp", "model": str(synthetic_gguf)}
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    config = {
        "backends": [{"name": "broken", **chat, "model": "broken.gguf"}, {"name": "chat", **chat}],
        "models": [{"name": "guide", "route": ["broken", "chat"]}],
        "roles": [{"name": "default"}],
    }
    with running(tmp_path, config) as gateway, gateway.http as http:
        answer = http.post("/v1/chat/completions", json=LONG | {"max_tokens": 5, "stream": False})
    assert (answer.status_code, answer.headers["x-chasqui-backend"]) == (200, "chat")
