"""Settings -> backends by name. A new engine is a line here."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from backends.errors import ModelFileUnusable
from backends.health import Breaker, Watched
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fleet import Fleet
from backends.quote import Quote
from backends.relay import Relay
from backends.settings import BackendSettings, LlamaCppSettings, OpenAISettings, QuoteSettings
from backends.sources import find_model
from backends.transport import Transport
from backends.transport_http1 import Http1Transport

Connect = Callable[[OpenAISettings], Transport]


def connect(settings: OpenAISettings) -> Transport:
    return Http1Transport(settings.base_url)


def build_backends(
    settings: Iterable[BackendSettings],
    *,
    fleet: Fleet,
    home: Path,
    config_dir: Path,
    secrets: Mapping[str, str],
    connect: Connect = connect,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Watched]:
    """
    Args:
        secrets: environment variables by name; one that is missing means no authorization header.

    Raises:
        ModelFileUnusable: all missing model files in one message.
    """
    backends: dict[str, Watched] = {}
    missing: list[str] = []
    for one in settings:
        match one:
            case LlamaCppSettings():
                try:
                    path = find_model(one.model, home=home, config_dir=config_dir)
                except ModelFileUnusable as exc:
                    missing.append(f"backend '{one.name}': {exc}")
                    continue
                backends[one.name] = Watched(LocalBackend(fleet.add(one, path), serves=one.serves), None, clock)
            case QuoteSettings():
                backends[one.name] = Watched(Quote(one.name), None, clock)
            case OpenAISettings():
                breaker = Breaker(one.breaker, clock) if one.breaker else None
                backends[one.name] = Watched(_upstream(one, secrets, connect), breaker, clock)
    if missing:
        raise ModelFileUnusable("\n".join(missing))
    return backends


def _upstream(settings: OpenAISettings, secrets: Mapping[str, str], connect: Connect) -> Relay:
    headers = {name.lower(): value for name, value in settings.headers.items()}
    if settings.api_key_env and (key := secrets.get(settings.api_key_env)):
        headers["authorization"] = f"Bearer {key}"
    return Relay(
        settings.name,
        connect(settings),
        headers=headers,
        timeouts=settings.timeouts,
        ask_usage=settings.stream_usage == "auto",
        identity=f"openai:{settings.base_url}",
    )
