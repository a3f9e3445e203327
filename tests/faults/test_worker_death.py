"""A worker that is killed costs its own requests a clear error; the gateway lives and the next request works."""

import json
import os
import signal
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
        "backends": [{"name": "chat", "engine": "llama_cpp", "model": str(synthetic_gguf), "context_tokens": 65536}],
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
