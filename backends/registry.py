"""Settings -> backends by name. A new engine is a line here."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from backends.connecting import connect
from backends.errors import BackendError, BackendMisconfigured, ModelFileUnusable
from backends.health import Breaker, Watched
from backends.keyring import KeyRing
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fetching import Fetching
from backends.llamacpp.fleet import Fleet
from backends.llamacpp.node import Node
from backends.probes import keep_probing
from backends.pulling.shelf import Shelf
from backends.pulling.source import parse_source
from backends.quote import Quote
from backends.relay import Relay, Site
from backends.settings import BackendSettings, LlamaCppSettings, OpenAISettings
from backends.slots import Slots
from backends.sources import MODELS, find_model
from backends.transport import Transport

log = logging.getLogger("chasqui")

Connect = Callable[[OpenAISettings], Transport]

RUNNING_AND_NEXT = 2
"""Requests that a local worker is given for each of its slots: one is worked on, and the next need not travel when that ends."""


def build_backends(
    settings: Iterable[BackendSettings],
    *,
    fleet: Fleet,
    home: Path,
    config_dir: Path,
    secrets: Mapping[str, str],
    connect: Connect = connect,
    clock: Callable[[], float] = time.monotonic,
    previous: Mapping[str, Watched] = {},
) -> dict[str, Watched]:
    """
    Args:
        secrets: by name; one that is missing means no authorization header.
        previous: those in use. Whose settings and keys are the same goes on, with its connections, worker and health.

    Raises:
        ModelFileUnusable: everything that is missing or cannot be used, in one message.
    """
    backends: dict[str, Watched] = {}
    problems: list[str] = []
    for one in settings:
        try:
            path = _file_of(one, home=home, config_dir=config_dir) if isinstance(one, LlamaCppSettings) else None
            keys = keys_of(one, secrets) if isinstance(one, OpenAISettings) else []
            origin, before = (one, path, keys), previous.get(one.name)
            if before is not None and before.origin == origin:
                backends[one.name] = before
                continue
            if isinstance(one, OpenAISettings):
                made = _watched_upstream(one, keys, connect, clock)
            elif isinstance(one, LlamaCppSettings) and path is not None:
                member = fleet.add(one, path, fetching=_fetching(one, home=home))
                find = partial(find_model, home=home, config_dir=config_dir)
                worker = LocalBackend(member, serves=one.serves, sharing=one.prefix_sharing, find=find)
                made = Watched(worker, None, clock, _slots(one, one.slots * RUNNING_AND_NEXT))
                made.probing = partial(_preload, worker) if one.preload else None
            else:
                made = Watched(Quote(one.name), None, clock)
            made.origin = origin
            backends[one.name] = made
        except ModelFileUnusable as exc:
            problems.append(f"backend '{one.name}': {exc}")
        except BackendMisconfigured as exc:
            problems.append(str(exc))
    if problems:
        raise ModelFileUnusable("\n".join(problems))
    return backends


def _file_of(settings: LlamaCppSettings, *, home: Path, config_dir: Path) -> Path:
    """Where it is; or, of one that may be downloaded, where it will be."""
    try:
        return find_model(settings.model, home=home, config_dir=config_dir)
    except ModelFileUnusable:
        if not settings.auto_pull:
            raise
        return Shelf(home / MODELS).path(parse_source(settings.model).name)


def _fetching(settings: LlamaCppSettings, *, home: Path) -> Fetching | None:
    """What brings the file of a source, where it is not here any more or not yet."""
    return Fetching(settings.model, Shelf(home / MODELS)) if settings.auto_pull else None


async def _preload(worker: LocalBackend) -> None:
    try:
        await worker.load()
    except BackendError as exc:
        log.error("%s", exc)


def _watched_upstream(
    settings: OpenAISettings, keys: Sequence[str], connect: Connect, clock: Callable[[], float]
) -> Watched:
    if secret_names(settings) and not keys:
        log.warning("backend '%s' has no key: %s is not set", settings.name, " or ".join(secret_names(settings)))
    upstream = _upstream(settings, keys, connect)
    breaker = Breaker(settings.breaker, clock) if settings.breaker else None
    watched = Watched(upstream, breaker, clock, _slots(settings, settings.max_concurrent))
    watched.paths = settings.paths
    if settings.probe:
        watched.probing = partial(keep_probing, upstream, breaker, settings.probe)
    return watched


def _slots(settings: OpenAISettings | LlamaCppSettings, at_once: int | None) -> Slots | None:
    if at_once is None:
        return None
    return Slots(settings.name, at_once, max_waiting=settings.max_waiting, max_wait_s=settings.max_wait_s)


def _upstream(settings: OpenAISettings, keys: Sequence[str], connect: Connect) -> Relay:
    url = urlsplit(settings.base_url)
    headers = {name.lower(): value for name, value in settings.headers.items()}
    relay = (Node if settings.node else Relay)(
        settings.name,
        connect(settings),
        site=Site(url.path.rstrip("/"), f"?{urlencode(settings.query)}" if settings.query else ""),
        keys=KeyRing([headers | _key_header(settings, key) for key in keys] or [headers]),
        timeouts=settings.timeouts,
        ask_usage=settings.stream_usage == "auto",
        identity=f"openai:{settings.base_url}",
        max_answer_bytes=int(settings.max_answer_mb * 2**20),
    )
    if isinstance(relay, Node):
        relay.sharing = settings.prefix_sharing
    return relay


def keys_of(settings: OpenAISettings, secrets: Mapping[str, str]) -> list[str]:
    """Those that are there, in the order of the settings, files behind variables."""
    return [secrets[name] for name in secret_names(settings) if secrets.get(name)]


def secret_names(settings: OpenAISettings) -> list[str]:
    """What `secrets` calls them: a variable by its name, a file by `file:` and its path."""
    variables, files = settings.api_key_env or [], settings.api_key_file or []
    variables = [variables] if isinstance(variables, str) else variables
    files = [files] if isinstance(files, str) else files
    return [*variables, *(f"file:{path}" for path in files)]


def _key_header(settings: OpenAISettings, key: str) -> dict[str, str]:
    return {"api-key": key} if settings.auth == "api-key" else {"authorization": f"Bearer {key}"}
