"""Whether the names in a configuration fit together: what a schema cannot see."""

from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from backends.settings import LlamaCppSettings
from gateway.settings_schema import GatewaySettings
from policies.roles import ADMIN, DEFAULT
from policies.routing import RouteCycle, expand
from policies.settings import RouteEntry

Problem = tuple[tuple[Any, ...], str]


def cross_check(settings: GatewaySettings) -> Iterator[Problem]:
    """(path into the file, what is wrong there)"""
    for kind in ("backends", "models", "collections", "roles", "keys"):
        yield from _twice(kind, [one.name for one in getattr(settings, kind)])
    yield from _routes(settings)
    collections = [collection.name for collection in settings.collections]
    for index, model in enumerate(settings.models):
        for place, name in enumerate(model.collections):
            yield from _known(("models", index, "collections", place), name, collections, "collection")
    yield from _embedders(settings)
    yield from _retrieval(settings)
    roles = [role.name for role in settings.roles]
    for index, name in enumerate(roles):
        if name == ADMIN.name:
            yield ("roles", index, "name"), f"the role '{ADMIN.name}' is built in; choose another name"
    for index, key in enumerate(settings.keys):
        yield from _known(("keys", index, "role"), key.role, [*roles, ADMIN.name, DEFAULT.name], "role")


def _twice(kind: str, names: list[str]) -> Iterator[Problem]:
    for index, name in enumerate(names):
        if Counter(names[:index])[name]:
            yield (kind, index, "name"), f"'{name}' is there twice"


def _routes(settings: GatewaySettings) -> Iterator[Problem]:
    backends = {backend.name for backend in settings.backends}
    models = {model.name: model for model in settings.models}
    for index, model in enumerate(settings.models):
        sound = True
        for place, entry in enumerate(model.route):
            target = entry.backend if isinstance(entry, RouteEntry) else entry
            found = list(_known(("models", index, "route", place), target, [*backends, *models], "backend or model"))
            sound = sound and not found
            yield from found
            if isinstance(entry, RouteEntry) and "*" in (entry.model or "") and not model.name.endswith("*"):
                yield ("models", index, "route", place, "model"), f"`*` stands for nothing: '{model.name}' has none"
        try:
            if sound:
                expand(model.name, models, backends)
        except RouteCycle as exc:
            yield ("models", index, "route"), str(exc)
        except KeyError:
            pass  # a station further along is unknown, and reported there


def _embedders(settings: GatewaySettings) -> Iterator[Problem]:
    backends = {backend.name: backend for backend in settings.backends}
    for index, collection in enumerate(settings.collections):
        where = ("collections", index, "embed")
        yield from _known(where, collection.embed, backends, "backend")
        backend = backends.get(collection.embed)
        if isinstance(backend, LlamaCppSettings) and backend.serves != "embeddings":
            yield where, f"backend '{backend.name}' serves {backend.serves}; a collection needs `serves: embeddings`"


def _retrieval(settings: GatewaySettings) -> Iterator[Problem]:
    backends = {backend.name: backend for backend in settings.backends}
    models = [model.name for model in settings.models]
    for index, model in enumerate(settings.models):
        where = ("models", index, "retrieval")
        if model.retrieval.rewrite:
            yield from _known((*where, "rewrite"), model.retrieval.rewrite, models, "model")
        if model.retrieval.rerank:
            yield from _known((*where, "rerank"), model.retrieval.rerank, backends, "backend")
            yield from _serves((*where, "rerank"), backends.get(model.retrieval.rerank), "rerank")
    if settings.default_rewrite is not None:
        yield from _known(("default_rewrite",), settings.default_rewrite, models, "model")
    if settings.default_embed is not None:
        yield from _known(("default_embed",), settings.default_embed, backends, "backend")
        yield from _serves(("default_embed",), backends.get(settings.default_embed), "embeddings")


def _serves(where: tuple[Any, ...], backend: object, wanted: str) -> Iterator[Problem]:
    if isinstance(backend, LlamaCppSettings) and backend.serves != wanted:
        yield where, f"backend '{backend.name}' serves {backend.serves}; this needs `serves: {wanted}`"


def _known(where: tuple[Any, ...], name: str, names: Iterable[str], kind: str) -> Iterator[Problem]:
    names = list(names)
    if name not in names:
        near = get_close_matches(name, names, n=1)
        yield where, f"there is no {kind} '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")
