"""What can be set about keys, roles, limits, routes and prompts."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from backends.settings import Name, Seconds, Settings

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(span: str) -> float:
    """`10s`, `5m`, `1h`, `30d` -> seconds, between 10 s and 30 days."""
    match = re.fullmatch(r"(\d{1,7})([smhd])", span)
    seconds = int(match[1]) * UNITS_S[match[2]] if match else 0
    if not 10 <= seconds <= 30 * 86400:
        raise ValueError("is a time like 10s, 5m, 1h or 30d, between 10s and 30d")
    return float(seconds)


def _checked_span(span: str) -> str:
    seconds_of(span)
    return span


Span = Annotated[str, AfterValidator(_checked_span)]
Amount = Annotated[int, Field(ge=0, le=10**15)]


class LimitSettings(Settings):
    """One measure: `requests` or `tokens` within a rolling window, or `concurrent` at any moment."""

    per: Span | None = None
    requests: Amount | None = None
    tokens: Amount | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> "LimitSettings":
        measures = [name for name in ("requests", "tokens", "concurrent") if getattr(self, name) is not None]
        if len(measures) != 1:
            raise ValueError("names exactly one of requests, tokens, concurrent")
        if (measures == ["concurrent"]) == (self.per is not None):
            raise ValueError("requests and tokens need `per`, concurrent has none")
        return self


class RoleSettings(Settings):
    """Allow-lists with globs; `*` also matches slashes. The limits hold for each key of the role."""

    name: Name
    models: list[str] = ["*"]
    collections: list[str] = []
    prompts: list[str] = ["*"]
    backends: list[str] = ["*"]
    paths: list[str] = ["/v1/*"]
    limits: list[LimitSettings] = []


class KeySettings(Settings):
    """A key whose secret comes from the environment, or from a file that holds nothing else."""

    name: Name
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    key_file: Annotated[str, Field(min_length=1)] | None = None
    role: Name = "default"

    @model_validator(mode="after")
    def _one_source(self) -> "KeySettings":
        if (self.key_env is None) == (self.key_file is None):
            raise ValueError("needs one of key_env and key_file")
        return self


class RouteEntry(Settings):
    """A station of a route: a backend, or another model with all of its stations."""

    backend: Name
    model: str | None = None
    """What the backend calls it; the client's name where it is not given. `*` in it is what the model's own `*` stands for."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)] = 1.0
    """Its share where the strategy is `weighted`, its strength where it is `least_busy`."""


class RouteSettings(Settings):
    """What a model name stands for."""

    name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/-]{0,127}\*?|\*)$")]
    """With `*` at its end it stands for every name that begins so, unless another entry is closer."""
    route: Annotated[list[Name | RouteEntry], Field(min_length=1)]
    strategy: Literal["order", "weighted", "least_busy", "fastest"] = "order"
    """Which station is asked first; the others follow when it fails."""
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    """Extra attempts on the same backend before the next one, after pauses that grow and that honour Retry-After."""
    hedge_after_s: Seconds | Literal[False] = False
    """Chat and completions: when nothing has come from the first station for so long, the next one is asked as well, and the first
    answer counts. Both cost; only the answer's own tokens are counted."""
    prompt: str | None = None
    default_max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of an answer where the client names no maximum: a local model stops there, for an upstream a quota holds them."""


class PromptsSettings(Settings):
    paths: list[str] = []
    """Globs, relative to the working directory."""
