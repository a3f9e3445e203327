"""The shape of config/chasqui.yaml: each package's settings, added up."""

import re
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field, field_validator

from backends.settings import BackendSettings, EnvName, FleetSettings, Name, Seconds, Settings
from policies.answer_cache import AnswerCacheSettings
from policies.settings import KeySettings, PromptsSettings, RoleSettings, RouteSettings
from retrieval.settings import CollectionSettings, EmbeddingCacheSettings, FilesSettings, RetrievalSettings


class AdminSettings(Settings):
    """An address of its own for /admin, in place of the other; it has /health, /metrics and /schema as well."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """0: any free one, printed at start."""


class ServerSettings(Settings):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0: any free one, printed at start."""
    admin: AdminSettings | None = None
    """Where /admin is served, and nowhere else then."""
    failed_keys_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | Literal[False] = 30
    """Requests with unknown keys from one address (or one /64 of IPv6); after these, only keys that have been used from there before
    are let in, for the rest of the minute. `off` for any number."""
    workers: Literal[1] = 1
    max_body_mb: Annotated[float, Field(gt=0, le=4096)] = 25
    shutdown_s: Annotated[float, Field(ge=0, le=86_400)] = 30
    """How long requests in work may go on after a stop signal; streams that do not end in time get one error event."""
    keepalive_s: Seconds | Literal[False] = False
    """A stream of chat or completions that is still without its first event gets a `: ping` comment this often, so that proxies
    keep the connection. With the first one the status 200 is out, and a failure after it is an error event."""


def _is_a_store(url: str) -> str:
    """The problem never repeats the address: a password may be in it."""
    if url.startswith("sqlite:///") and url != "sqlite:///":
        return url
    if not url.startswith(("sqlite:///", "postgresql://")):
        raise ValueError("must begin with sqlite:/// (a file) or postgresql:// (a server)")
    from sqlalchemy.engine import make_url  # 0.1 s to import, and most commands need nothing else of it
    from sqlalchemy.exc import ArgumentError

    try:
        named = make_url(url).database
    except (ArgumentError, ValueError):
        raise ValueError(
            "is no address; write postgresql://user:password@host:5432/database, what is special in a password as %40"
        ) from None
    if not named:
        raise ValueError("names no database; write sqlite:///path or postgresql://user:password@host:5432/database")
    return url


class StoreSettings(Settings):
    url: Annotated[str, AfterValidator(_is_a_store)] = "sqlite:///${home}/chasqui.db"
    """Keys, documents and cached embeddings: a file (`sqlite:///path`) or a server
    (`postgresql://user:${PASSWORD}@host:5432/database`)."""


class AlertSettings(Settings):
    """A webhook that is called when a limit is nearly used up: once for each threshold and window, until it answers 2xx."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")]
    secret_env: EnvName | None = None
    """The environment variable with the secret that signs the calls, as Standard Webhooks describes."""
    thresholds: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)] = [0.8, 1.0]
    """Parts of a limit."""
    measures: Annotated[list[Literal["requests", "tokens", "cost_usd", "compute_s"]], Field(min_length=1)] = [
        "cost_usd"
    ]


class QuotaSettings(Settings):
    """Where limits are counted."""

    store: str = "memory"
    """`memory`: in this process; or Redis, for any number of gateways: `redis://:${REDIS_PASSWORD}@host:6379/0`."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 0.5
    """Of one step in Redis; no request waits longer for it."""
    on_store_down: Literal["deny", "allow"] = "deny"
    """When Redis does not answer (or, with `memory`, the database does not say what was used before): `deny` answers 503 to requests
    that have limits; `allow` counts them in this process from zero, and tells the store when it is back."""
    alerts: AlertSettings | None = None

    @field_validator("store")
    @classmethod
    def _can_be_asked(cls, store: str) -> str:
        if store != "memory":
            check_redis_address(store)
        return store


REDIS_OPTIONS = {"db", "username", "password", "ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


def check_redis_address(address: str) -> None:
    """
    Raises:
        ValueError: in words that repeat none of it, for it holds a password.
    """
    if not re.fullmatch(r"(redis|rediss|unix)://\S+", address):
        raise ValueError("is `memory`, or an address like redis://host:6379/0, rediss://… or unix:///path")
    try:
        parts = urlsplit(address)
        sound = parts.port is None or parts.port > 0
    except ValueError:
        sound = False
    if not sound or parts.fragment or (parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path)):
        raise ValueError(
            "is no address of a Redis; what is special in a password is written as %2F for /, %23 for #, %40 for @"
        )
    if unknown := sorted({name for name, _ in parse_qsl(parts.query)} - REDIS_OPTIONS):
        raise ValueError(f"has the option '{unknown[0]}', which is none of {', '.join(sorted(REDIS_OPTIONS))}")


class LedgerSettings(Settings):
    """What is kept of finished requests."""

    retention_days: Annotated[float, Field(gt=0, le=36_500)] = 30
    """Of the row of each request, with its contents and feedback."""
    usage_days: Annotated[float, Field(ge=32, le=36_500)] = 400
    """Of the sums by hour, which reports and limits are made from."""
    fsync: Literal["always"] | Literal[False] = False
    """`always`: a request waits until its lines are on the disk, and survives a power cut; `off`: it survives `kill -9`."""


class ModelSettings(RouteSettings):
    """What clients may ask for."""

    collections: list[Name] = []
    retrieval: RetrievalSettings = RetrievalSettings()


class GatewaySettings(Settings):
    """config/chasqui.yaml."""

    server: ServerSettings = ServerSettings()
    home: str = "var"
    store: StoreSettings = StoreSettings()
    limits: QuotaSettings = QuotaSettings()
    ledger: LedgerSettings = LedgerSettings()
    fleet: FleetSettings = FleetSettings()
    backends: Annotated[list[BackendSettings], Field(min_length=1)]
    models: Annotated[list[ModelSettings], Field(min_length=1)]
    collections: list[CollectionSettings] = []
    default_embed: Name | None = None
    """The backend that embeds vector stores made over the API; without it the first one here that `serves: embeddings`."""
    default_rewrite: Name | None = None
    """The model that rewrites questions for `rewrite_query: true` of a search; without it they are searched for as they are."""
    files: FilesSettings = FilesSettings()
    prompts: PromptsSettings = PromptsSettings()
    roles: list[RoleSettings] = []
    keys: list[KeySettings] = []
    answer_cache: AnswerCacheSettings = AnswerCacheSettings()
    embedding_cache: EmbeddingCacheSettings = EmbeddingCacheSettings()
