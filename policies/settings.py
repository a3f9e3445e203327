"""What can be set about keys, roles, limits, routes and prompts."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from backends.settings import Name, Seconds, Settings
from policies.spans import span_of


def _checked_span(span: str) -> str:
    span_of(span)
    return span


Span = Annotated[str, AfterValidator(_checked_span)]
Amount = Annotated[int, Field(ge=0, le=10**15)]
Dollars = Annotated[float, Field(ge=0, le=1_000_000)]
ModelGlob = Annotated[str, Field(min_length=1, max_length=256)]

MEASURES = ("requests", "tokens", "cost_usd", "compute_s", "concurrent")


class LimitSettings(Settings):
    """One measure: `requests`, `tokens`, `cost_usd` or `compute_s` within a window, or `concurrent` at any moment."""

    per: Span | None = None
    """A rolling window (`10s` to `30d`), or the calendar's `hour`, `day`, `week` or `month` in UTC."""
    requests: Amount | None = None
    tokens: Amount | None = None
    """Of prompts and answers."""
    cost_usd: Dollars | None = None
    """By the `price` of the models."""
    compute_s: Annotated[float, Field(ge=0, le=10**9)] | None = None
    """Seconds for which local models work on an answer."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    model: ModelGlob | None = None
    """Counts requests for the models that this glob names; all of them where it is not given."""

    @model_validator(mode="after")
    def _one_measure(self) -> "LimitSettings":
        measures = [name for name in MEASURES if getattr(self, name) is not None]
        if len(measures) != 1:
            raise ValueError(f"names exactly one of {', '.join(MEASURES)}")
        if (measures == ["concurrent"]) == (self.per is not None):
            raise ValueError("all but concurrent need `per`, concurrent has none")
        return self


class PriceSettings(Settings):
    """In US dollars."""

    input_per_m: Dollars = 0.0
    """A million tokens of prompts."""
    output_per_m: Dollars = 0.0
    """A million tokens of answers."""
    cached_input_per_m: Dollars | None = None
    """A million of those tokens of prompts that the upstream says it had cached; `input_per_m` where it is not given."""
    per_request: Dollars = 0.0


class RoleSettings(Settings):
    """Allow-lists with globs; `*` also matches slashes."""

    name: Name
    models: list[str] = ["*"]
    collections: list[str] = []
    prompts: list[str] = ["*"]
    backends: list[str] = ["*"]
    paths: list[str] = ["/v1/*"]
    limits: list[LimitSettings] = []
    """They hold for each key of the role."""
    shared: bool = False
    """They hold for all keys of the role together."""


class KeySettings(Settings):
    """A key whose secret comes from the environment, or from a file that holds nothing else."""

    name: Name
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    key_file: Annotated[str, Field(min_length=1)] | None = None
    role: Name = "default"
    log_content: bool = False
    """`on`: what is asked and answered with it is kept in the ledger."""

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
    price: PriceSettings = PriceSettings()
    """What a request is reckoned to cost, for `cost_usd` and the ledger."""
    default_max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of an answer where the client names no maximum: a local model stops there, for an upstream a quota holds them."""


class PromptsSettings(Settings):
    paths: list[str] = []
    """Globs, relative to the working directory."""
