"""Settings become backends."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from backends.base import CHAT, Backend, Call
from backends.connecting import connect
from backends.errors import ModelFileUnusable
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fleet import Fleet
from backends.quote import Quote
from backends.registry import build_backends
from backends.settings import BackendSettings, OpenAISettings
from backends.wire import Body
from tests.backends.fake_transport import FakeReply, FakeTransport

pytestmark = pytest.mark.anyio

REMOTE = {"name": "up", "engine": "openai", "base_url": "https://api.example.com/v1"}
STREAM = b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\n'


def read(*settings: dict[str, Any]) -> list[BackendSettings]:
    return TypeAdapter(list[BackendSettings]).validate_python(settings)


async def sent_by(settings: dict[str, Any], secrets: dict[str, str], tmp_path: Path) -> tuple[dict[str, str], bytes]:
    """Headers and body of the request that the built backend makes for a stream."""
    transport, fleet = FakeTransport(FakeReply(200, {}, [STREAM])), Fleet()
    backends = build_backends(
        read(settings), fleet=fleet, home=tmp_path, config_dir=tmp_path, secrets=secrets, connect=lambda _: transport
    )
    async for _ in backends["up"].stream(Call(CHAT, Body(b'{"model":"m","messages":[]}'), "r", "m")):
        pass
    await fleet.aclose()
    return dict(transport.requests[0].headers), transport.requests[0].body


async def test_each_engine_gets_its_backend_by_name(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    local = {"name": "chat", "engine": "llama_cpp", "model": "m.gguf", "serves": "embeddings"}
    fleet = Fleet()
    backends = build_backends(
        read(local, {"name": "q", "engine": "quote"}, REMOTE),
        fleet=fleet,
        home=tmp_path,
        config_dir=tmp_path,
        secrets={},
    )
    assert list(backends) == ["chat", "q", "up"]
    assert all(isinstance(backend, Backend) and backend.name == name for name, backend in backends.items())
    assert [backend.local for backend in backends.values()] == [True, True, False]
    chat = backends["chat"].inner
    assert isinstance(chat, LocalBackend)
    assert (chat.serves, chat.status(), isinstance(backends["q"].inner, Quote)) == ("embeddings", "asleep", True)
    assert (await backends["up"].identity()) == "openai:https://api.example.com/v1"
    await fleet.aclose()


async def test_the_key_comes_from_its_environment_variable_and_beats_a_written_header(tmp_path: Path) -> None:
    settings = REMOTE | {"api_key_env": "UP_KEY", "headers": {"X-Team": "a", "Authorization": "Bearer written"}}
    headers, _ = await sent_by(settings, {"UP_KEY": "secret"}, tmp_path)
    assert (headers["authorization"], headers["x-team"]) == ("Bearer secret", "a")
    headers, _ = await sent_by(REMOTE | {"api_key_env": "UP_KEY"}, {}, tmp_path)
    assert "authorization" not in headers


@pytest.mark.parametrize(("setting", "asks"), [("auto", True), (False, False)])
async def test_stream_usage_decides_whether_usage_is_asked_for(tmp_path: Path, setting: object, asks: bool) -> None:
    _, body = await sent_by(REMOTE | {"stream_usage": setting}, {}, tmp_path)
    assert ("stream_options" in json.loads(body)) is asks


async def test_all_missing_model_files_are_named_at_once(tmp_path: Path) -> None:
    fleet = Fleet()
    local = [{"name": name, "engine": "llama_cpp", "model": f"{name}.gguf"} for name in ("a", "b")]
    with pytest.raises(ModelFileUnusable) as caught:
        build_backends(read(*local), fleet=fleet, home=tmp_path, config_dir=tmp_path, secrets={})
    first, second = str(caught.value).splitlines()
    assert first.startswith("backend 'a': the model file a.gguf is missing")
    assert second.startswith("backend 'b': the model file b.gguf is missing")
    await fleet.aclose()


async def test_connecting_opens_nothing_yet() -> None:
    settings = read(REMOTE)[0]
    assert isinstance(settings, OpenAISettings)
    await connect(settings).aclose()
