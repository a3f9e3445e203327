"""The secrets that a configuration names: variables of the environment, and files that hold nothing else."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from backends.registry import secret_names
from backends.settings import OpenAISettings
from gateway.settings_schema import AlertSettings, GatewaySettings
from policies.settings import KeySettings

MIN_SECRET_CHARS = 16
WEBHOOK_PREFIX = "whsec_"


def read_secrets(settings: GatewaySettings, environment: Mapping[str, str]) -> dict[str, str]:
    """Those that are there, by name; `file:PATH` is the name of a file."""
    found: dict[str, str] = {}
    for name in _named(settings):
        value = _read(name.removeprefix("file:")) if name.startswith("file:") else environment.get(name, "")
        if value:
            found[name] = value
    return found


def missing_secrets(settings: GatewaySettings, secrets: Mapping[str, str]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(path into the configuration, what is wrong there). A provider's variable may be missing as long as nobody calls it."""
    for index, key in enumerate(settings.keys):
        name, field = key_name(key), "key_file" if key.key_file else "key_env"
        if name not in secrets:
            what = f"the file {key.key_file} cannot be read, or does not hold one line" if key.key_file else None
            yield ("keys", index, field), what or f"the environment variable {name} is not set"
        elif len(secrets[name]) < MIN_SECRET_CHARS:
            yield (
                ("keys", index, field),
                f"{name.removeprefix('file:')} is shorter than {MIN_SECRET_CHARS} characters; choose a longer key",
            )
    yield from _missing_for_alerts(settings.limits.alerts, secrets)
    for index, backend in enumerate(settings.backends):
        for name in secret_names(backend) if isinstance(backend, OpenAISettings) else ():
            if name.startswith("file:") and name not in secrets:
                path = name.removeprefix("file:")
                yield ("backends", index, "api_key_file"), f"the file {path} cannot be read, or does not hold one line"


def _missing_for_alerts(
    alerts: AlertSettings | None, secrets: Mapping[str, str]
) -> Iterator[tuple[tuple[Any, ...], str]]:
    name = alerts.secret_env if alerts is not None else None
    if name is not None and name not in secrets:
        yield ("limits", "alerts", "secret_env"), f"the environment variable {name} is not set"
    elif name is not None and not can_sign(secrets[name]):
        yield ("limits", "alerts", "secret_env"), f"{name} begins with {WEBHOOK_PREFIX} and is not base64 behind it"


def can_sign(secret: str) -> bool:
    try:
        return bool(signing_key(secret))
    except ValueError:
        return False


def signing_key(secret: str) -> bytes:
    """Of webhooks: the secret itself, or what it says in base64 behind `whsec_`, as Standard Webhooks writes it.

    Raises:
        ValueError
    """
    if secret.startswith(WEBHOOK_PREFIX):
        return base64.b64decode(secret.removeprefix(WEBHOOK_PREFIX), validate=True)
    return secret.encode()


def key_name(key: KeySettings) -> str:
    """Under which `read_secrets` has a client's key."""
    return f"file:{key.key_file}" if key.key_file else str(key.key_env)


def _named(settings: GatewaySettings) -> Iterator[str]:
    yield from map(key_name, settings.keys)
    if settings.limits.alerts is not None and settings.limits.alerts.secret_env is not None:
        yield settings.limits.alerts.secret_env
    for backend in settings.backends:
        if isinstance(backend, OpenAISettings):
            yield from secret_names(backend)


def _read(path: str) -> str:
    """Empty for what is not there, is not text, or has more than one line: a header can hold but one."""
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if text.isprintable() else ""
