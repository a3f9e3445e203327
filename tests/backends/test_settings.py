"""What a configuration may say of a backend."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from backends.settings import BackendSettings, LlamaCppSettings, OpenAISettings, QuoteSettings

READ: TypeAdapter[Any] = TypeAdapter(BackendSettings)
LOCAL = {"name": "m", "engine": "llama_cpp", "model": "m.gguf"}
REMOTE = {"name": "o", "engine": "openai", "base_url": "https://api.example.com/v1"}


def test_the_engine_chooses_the_model_and_defaults_are_filled_in() -> None:
    local, remote = READ.validate_python(LOCAL), READ.validate_python(REMOTE)
    assert isinstance(local, LlamaCppSettings)
    assert isinstance(remote, OpenAISettings)
    assert isinstance(READ.validate_python({"name": "q", "engine": "quote"}), QuoteSettings)
    assert (local.serves, local.context_tokens, local.threads, local.gpu_layers) == ("chat", 4096, "auto", 0)
    assert (remote.stream_usage, remote.timeouts.connect_s, remote.api_key_env) == ("auto", 5.0, None)


def test_a_file_address_is_a_path() -> None:
    assert READ.validate_python(LOCAL | {"model": "file:/models/m.gguf"}).model == "/models/m.gguf"


def test_stream_usage_can_be_off() -> None:
    assert READ.validate_python(REMOTE | {"stream_usage": False}).stream_usage is False


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        READ.validate_python(LOCAL).name = "other"


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        (LOCAL, {"engine": "vllm"}, "engine"),
        (LOCAL, {"temprature": 1}, "Extra inputs"),
        (LOCAL, {"name": ""}, "name"),
        (LOCAL, {"name": "with space"}, "name"),
        (LOCAL, {"name": "x" * 129}, "name"),
        (LOCAL, {"model": "hf://a/b"}, "hf://owner/repo/file"),
        (LOCAL, {"model": "ftp://x/y.gguf"}, "path to a GGUF file"),
        (LOCAL, {"model": "https://x/y.gguf#sha256=1"}, "64 hexadecimal digits"),
        (LOCAL, {"auto_pull": True}, "`auto_pull` needs a `model` that is a source"),
        (LOCAL, {"serves": "images"}, "serves"),
        (LOCAL, {"context_tokens": 8}, "context_tokens"),
        (LOCAL, {"threads": 0}, "threads"),
        (LOCAL, {"gpu_layers": -2}, "gpu_layers"),
        (LOCAL, {"idle_stop_s": 0}, "idle_stop_s"),
        (REMOTE, {"base_url": "api.example.com"}, "base_url"),
        (REMOTE, {"base_url": "https://x/v1?key=1"}, "base_url"),
        (REMOTE, {"base_url": "https://"}, "base_url"),
        (REMOTE, {"api_key_env": "sk-123"}, "api_key_env"),
        (REMOTE, {"timeouts": {"connect_s": 0}}, "connect_s"),
        (REMOTE, {"timeouts": {"total_s": 86_401}}, "total_s"),
        (REMOTE, {"timeouts": {"first": 1}}, "Extra inputs"),
        (REMOTE, {"stream_usage": True}, "`auto` or `off`"),
        (REMOTE, {"stream_usage": 0}, "stream_usage"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        READ.validate_python(settings | change)
