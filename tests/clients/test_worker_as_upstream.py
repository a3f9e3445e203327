"""One Chasqui in front of another: a worker on TCP is a provider like any other."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from tests.conftest import ROOT
from tests.running import Gateway, running

KEY = "worker-key-0123456789"
ASK = [{"role": "user", "content": "Once upon a time"}]


@contextmanager
def tcp_worker(model: Path, *arguments: str) -> Iterator[str]:
    """`chasqui worker` on a free port; gives its base URL once it says that it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "gateway.cli",
        "worker",
        "--model",
        str(model),
        "--port",
        str(port),
        "--key-env",
        "KEY",
        *arguments,
    ]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"KEY": KEY}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        while b"serving" not in (line := process.stderr.readline()):
            assert line, "the worker ended"
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


@pytest.fixture(scope="module")
def worker(synthetic_gguf: Path) -> Iterator[str]:
    with tcp_worker(synthetic_gguf, "--name", "far-model") as url:
        yield url


@pytest.fixture(scope="module")
def gateway(worker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    config = {
        "backends": [{"name": "far", "engine": "openai", "base_url": worker, "api_key_env": "WORKER_KEY"}],
        "models": [{"name": "near", "route": [{"backend": "far", "model": "far-model"}]}],
        "roles": [{"name": "default"}],
    }
    with running(tmp_path_factory.mktemp("relay"), config, {"WORKER_KEY": KEY}) as gateway:
        yield gateway


def test_chat_streams_and_completions_cross_two_gateways(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        options = {"model": "near", "messages": ASK, "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**options)
        with client.chat.completions.create(**options, stream=True) as stream:
            chunks = list(stream)
        legacy = client.completions.create(model="near", prompt="the", max_tokens=3)
    assert whole.model == legacy.model == "near"
    assert {chunk.model for chunk in chunks} == {"near"}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 12


def test_a_refusal_of_the_far_side_keeps_its_words(gateway: Gateway) -> None:
    with gateway.sdk() as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="near", messages=ASK, max_tokens=100_000)
    assert refused.value.code == "context_length_exceeded"


def test_tokens_of_an_upstream_are_held_by_a_bound_and_settled_as_used(gateway: Gateway) -> None:
    key = gateway.new_key(limits=[{"per": "1h", "tokens": 2000}])
    with gateway.sdk(key) as client:
        first = client.chat.completions.with_raw_response.create(model="near", messages=ASK, max_tokens=5)
        second = client.chat.completions.with_raw_response.create(model="near", messages=ASK, max_tokens=5)
    used = first.parse().usage.total_tokens
    held_first = 2000 - int(first.headers["x-ratelimit-remaining-tokens"])
    assert held_first == used
    assert int(second.headers["x-ratelimit-remaining-tokens"]) == 2000 - used - second.parse().usage.total_tokens


def test_the_worker_itself_wants_its_key(worker: str) -> None:
    with (
        openai.OpenAI(base_url=worker, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with openai.OpenAI(base_url=worker, api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["far-model"]


def test_the_terminal_chat_streams_an_answer(gateway: Gateway) -> None:
    command = [
        sys.executable,
        "-m",
        "gateway.cli",
        "chat",
        "hello",
        "--model",
        "near",
        "--max-tokens",
        "8",
        "--base-url",
        f"{gateway.url}/v1",
    ]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"CHASQUI_API_KEY": gateway.key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) >= 2


def test_a_conversation_in_the_terminal_goes_on_until_it_ends(gateway: Gateway) -> None:
    command = [
        sys.executable,
        "-m",
        "gateway.cli",
        "chat",
        "--model",
        "near",
        "--max-tokens",
        "4",
        "--base-url",
        f"{gateway.url}/v1",
    ]
    environment = os.environ | {"CHASQUI_API_KEY": gateway.key}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, input="one\ntwo\n", timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) == 2


def test_a_real_story_model_tells_a_story(stories_gguf: Path, tmp_path: Path) -> None:
    config = {
        "backends": [{"name": "stories", "engine": "llama_cpp", "model": str(stories_gguf), "context_tokens": 512}],
        "models": [{"name": "stories", "route": ["stories"]}],
        "roles": [{"name": "default"}],
    }
    with running(tmp_path, config) as gateway, gateway.sdk() as client:
        answer = client.completions.create(model="stories", prompt="Once upon a time", max_tokens=30, temperature=0)
    assert "there was a little" in answer.choices[0].text
