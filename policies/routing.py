"""A model name -> the stations that may answer it, in the order in which they are asked. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from policies.settings import RouteEntry, RouteSettings


class Station(NamedTuple):
    backend: str
    model: str
    """What that backend calls the model."""


class RouteCycle(ValueError):
    pass


def expand(name: str, models: Mapping[str, RouteSettings], backends: Iterable[str]) -> list[Station]:
    """All stations of a model, with entries that are models replaced by theirs. A backend wins over a model of its name.

    Raises:
        RouteCycle: a route leads back to itself.
        KeyError: an entry that is neither a backend nor a model.
    """
    return list(dict.fromkeys(_walk(name, models, frozenset(backends), (name,))))


def _walk(
    name: str, models: Mapping[str, RouteSettings], backends: frozenset[str], path: tuple[str, ...]
) -> Iterable[Station]:
    for entry in models[name].route:
        target, alias = (entry.backend, entry.model) if isinstance(entry, RouteEntry) else (entry, None)
        if target in backends:
            yield Station(target, alias or path[-1])
        elif target in path:
            raise RouteCycle(f"the route of '{path[0]}' leads back to itself: {' -> '.join((*path, target))}")
        else:
            yield from _walk(target, models, backends, (*path, target))


def attempts(stations: Sequence[Station], *, allowed: Callable[[str], bool]) -> list[Station]:
    """The stations to ask, first to last (`strategy: order`). `allowed`: may this caller use that backend?"""
    return [station for station in stations if allowed(station.backend)]
