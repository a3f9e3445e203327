"""What can be set about a backend. Frozen, checked at start; unknown keys are refused."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from backends.errors import ModelFileUnusable
from backends.pulling.source import is_source, parse_source


class Settings(BaseModel):
    """Base of every settings model in the house."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"
Name = Annotated[str, Field(pattern=NAME)]
"""Names travel in URLs, headers and metric labels, so they are plain."""

Seconds = Annotated[float, Field(gt=0, le=86_400)]


CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


class FleetSettings(Settings):
    """Models of this machine that may be in memory at the same time. A model that has no room waits until another one has left."""

    max_loaded: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many."""
    max_memory_mb: Annotated[int, Field(ge=1)] | None = None
    """Of all workers together: what each takes is measured; before its first start, by its file."""


class LlamaCppSettings(Settings):
    """One worker process around one GGUF, started on first use and stopped when idle."""

    name: Name
    engine: Literal["llama_cpp"]
    model: str
    """A path, looked up in `home`, then in `config/`; or a source: `hf://owner/repo/file.gguf[@revision]`, `https://…/file.gguf[#sha256=…]`."""
    auto_pull: bool = False
    """A source that is not here is downloaded when the model is first asked for."""
    serves: Literal["chat", "embeddings", "rerank"] = "chat"
    context_tokens: Annotated[int, Field(ge=16, le=10_000_000)] = 4096
    """Prompts and answers, of all slots together. More than the model was trained with is allowed, and warned about."""
    slots: Annotated[int, Field(ge=1, le=128)] = 4
    """Answers at the same time. They share the context tokens; one that is alone may use all of them."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    gpu_layers: Annotated[int, Field(ge=-1)] = 0
    """Layers on the GPU; -1 is all of them."""
    split_mode: Literal["none", "layer", "row"] = "layer"
    """How several GPUs share a model."""
    flash_attention: Literal["auto"] | Annotated[bool, Field(strict=True)] = "auto"
    cache_type_k: CacheType = "f16"
    """How keys are kept in the cells of the pool; smaller ones are less exact."""
    cache_type_v: CacheType = "f16"
    """The same for values. Other than f32, f16 and bf16 it needs flash attention."""
    batch_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Embeddings and rerank: short texts share a call of llama.cpp up to so many tokens. On a CPU more is slower."""
    ram_disk: bool = False
    """The file is copied to `/dev/shm` when the model is loaded, so that the next load reads no disk."""
    preload: bool = False
    """Loaded when the gateway starts, and not at the first request."""
    pinned: bool = False
    """Never stopped for idleness, nor to make room for another model."""
    idle_stop_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without a request before the process is stopped."""
    prefix_sharing: Literal["key", "role", "all"] = "role"
    """Whose prompts may start where an earlier one left its cells: how fast an answer begins must not tell others what was asked."""
    max_waiting: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Requests that may wait for their turn, by key; one more gets 429 `server_busy`."""
    max_wait_s: Seconds = 60.0
    """How long one may wait, then 429 `server_busy`."""

    @model_validator(mode="after")
    def _can_be(self) -> "LlamaCppSettings":
        if self.flash_attention is False and self.cache_type_v not in ("f32", "f16", "bf16"):
            raise ValueError(f"`cache_type_v: {self.cache_type_v}` needs `flash_attention`, which is off")
        return self

    @field_validator("model")
    @classmethod
    def _is_a_path_or_a_source(cls, model: str) -> str:
        if is_source(model):
            try:
                parse_source(model)
            except ModelFileUnusable as exc:
                raise ValueError(str(exc)) from None
        elif "://" in model.removeprefix("file://"):
            raise ValueError("is a path to a GGUF file, or a source that begins with hf://, https:// or http://")
        return model.removeprefix("file://").removeprefix("file:")

    @model_validator(mode="after")
    def _auto_pull_has_a_source(self) -> "LlamaCppSettings":
        if self.auto_pull and not is_source(self.model):
            raise ValueError("`auto_pull` needs a `model` that is a source: hf://…, https://…")
        return self


class QuoteSettings(Settings):
    """No model at all: answers with the best passages, word for word, cited."""

    name: Name
    engine: Literal["quote"]


class Timeouts(Settings):
    connect_s: Seconds = 5.0
    first_byte_s: Seconds = 60.0
    """From the request being sent to the first byte of the answer's head."""
    idle_s: Seconds = 60.0
    """Between two pieces of an answer."""
    total_s: Seconds = 600.0
    """Answers that are not streamed."""


class BreakerSettings(Settings):
    """A backend that fails `failures` times in a row is left alone for `open_s`."""

    failures: Annotated[int, Field(ge=1)] = 5
    open_s: Seconds = 30.0


class ProbeSettings(Settings):
    """A question that costs nothing, asked in the background: the breaker opens and closes on its answer, too."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/models"
    """Below `base_url`. Any answer but 401, 403 and 5xx is a sign of health."""
    every_s: Seconds = 30.0
    timeout_s: Seconds = 5.0


class TlsSettings(Settings):
    """Files in PEM, relative to the working directory."""

    ca_file: str | None = None
    """Who is trusted, in place of the system's trust store."""
    client_cert_file: str | None = None
    client_key_file: str | None = None
    """Where it is not in `client_cert_file`."""


EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

OURS = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "te", "trailer", "upgrade", "expect"}
)

RELAYED_PATHS = ("/v1/images/*", "/v1/audio/*", "/v1/moderations", "/v1/responses")


class OpenAISettings(Settings):
    """Any server that speaks OpenAI's API."""

    name: Name
    engine: Literal["openai"]
    base_url: Annotated[str, Field(pattern=r"^https?://[^/?#\s{}]+[^?#\s]*$")]
    """With the version segment: `https://api.openai.com/v1`. `{model}` in its path becomes the model's name there, as Azure wants it."""
    query: dict[str, str] = {}
    """Added to every request's address: `{api-version: "2024-10-21"}`."""
    api_key_env: EnvName | list[EnvName] | None = None
    """The environment variable that holds the key, or several. Never the key."""
    api_key_file: str | list[str] | None = None
    """A file that holds nothing but the key, or several; read at start and at every reload."""
    auth: Literal["bearer", "api-key"] = "bearer"
    """How the key is sent: `authorization: Bearer …`, or Azure's `api-key: …`."""
    paths: list[Annotated[str, Field(pattern=r"^/v1/[!-~]+$")]] = list(RELAYED_PATHS)
    """Beside chat, completions and embeddings, which it always gets. `*` at the end stands for the rest."""
    timeouts: Timeouts = Timeouts()
    breaker: BreakerSettings | Literal[False] = BreakerSettings()
    """`off` switches it off."""
    probe: ProbeSettings | Literal[False] = False
    max_concurrent: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests at a time; the others wait in turn, by key."""
    max_waiting: Annotated[int, Field(ge=0, le=1_000_000)] = 1000
    """Requests that may wait; one more gets 429 `server_busy`."""
    max_wait_s: Seconds = 30.0
    """How long one may wait, then 429 `server_busy`."""
    max_answer_mb: Annotated[float, Field(gt=0, le=1024)] = 64
    """Of an answer that is not streamed, which is held until it is complete."""
    tls: TlsSettings = TlsSettings()
    proxy: Annotated[str, Field(pattern=r"^http://[^/?#\s]+/?$")] | None = None
    """An HTTP proxy: `http://user:${PASSWORD}@proxy:3128`."""
    headers: dict[str, str] = {}
    node: bool = False
    """It is a `chasqui worker` on another machine: `/admin/backends` shows what it is at work on, and swaps its model."""
    prefix_sharing: Literal["key", "role", "all"] = "role"
    """Of a node: whose prompts may start where an earlier one left its cells."""
    stream_usage: Literal["auto"] | Annotated[bool, Field(strict=True)] = "auto"
    """`auto`: ask for usage in streams even where the client did not; `off`: leave streams as the client asked."""

    @field_validator("base_url", "proxy")
    @classmethod
    def _has_a_port_that_can_be(cls, url: str | None) -> str | None:
        try:
            _ = urlsplit(url or "").port
        except ValueError:
            raise ValueError("has a port that cannot be; ports end at 65535") from None
        return url

    @field_validator("headers")
    @classmethod
    def _can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or name.lower() in OURS:
                raise ValueError(f"'{name}' is no header that can be set here")
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"the value of '{name}' holds a line end or a character that is not ASCII")
        return headers

    @model_validator(mode="after")
    def _tls_has_a_use(self) -> "OpenAISettings":
        if self.tls != TlsSettings() and not self.base_url.startswith("https:"):
            raise ValueError("`tls` is for https:// addresses")
        if self.tls.client_key_file is not None and self.tls.client_cert_file is None:
            raise ValueError("`tls.client_key_file` needs `tls.client_cert_file`")
        return self

    @field_validator("stream_usage")
    @classmethod
    def _auto_or_off(cls, value: object) -> object:
        if value is True:
            raise ValueError("is `auto` or `off`")
        return value


BackendSettings = Annotated[LlamaCppSettings | QuoteSettings | OpenAISettings, Field(discriminator="engine")]
