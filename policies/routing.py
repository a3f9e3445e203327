"""A model name -> the stations that may answer it, in the order in which they are asked. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from backends.health import Facts
from policies.settings import RouteEntry, RouteSettings


class Station(NamedTuple):
    backend: str
    model: str
    """What that backend calls the model."""
    weight: float = 1.0


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
    for written in models[name].route:
        entry = written if isinstance(written, RouteEntry) else RouteEntry(backend=written)
        target = entry.backend
        if target in backends:
            yield Station(target, entry.model or path[-1], entry.weight)
        elif target in path:
            raise RouteCycle(f"the route of '{path[0]}' leads back to itself: {' -> '.join((*path, target))}")
        else:
            yield from _walk(target, models, backends, (*path, target))


def named(stations: Iterable[Station], asked: str, wildcard: str) -> list[Station]:
    """The stations of a wildcard name for one of the names that it stands for.

    Args:
        wildcard: the configured name, which ends in `*`.
    """
    matched = asked[len(wildcard) - 1 :]
    return [
        station._replace(model=asked if station.model == wildcard else station.model.replace("*", matched))
        for station in stations
    ]


def attempts(
    stations: Sequence[Station],
    *,
    strategy: str,
    allowed: Callable[[str], bool],
    facts: Callable[[str], Facts],
    draw: Callable[[], float],
) -> list[Station]:
    """The stations to ask, first to last; each strategy only chooses the order, so all of them remain as fallbacks.

    Args:
        strategy: `order`: as written. `weighted`: the first one drawn by weight. `least_busy`: fewest requests in
            flight for its weight. `fastest`: shortest decaying latency, those never asked first.
        allowed: may this caller use that backend?
        draw: gives a number in [0, 1).
    """
    usable = [station for station in stations if allowed(station.backend)]
    match strategy:
        case "weighted" if usable:
            first = _drawn(usable, draw())
            return [usable[first], *usable[:first], *usable[first + 1 :]]
        case "least_busy":
            return sorted(usable, key=lambda station: facts(station.backend).in_flight / station.weight)
        case "fastest":
            return sorted(usable, key=lambda station: facts(station.backend).latency_s or 0.0)
        case _:
            return usable


def _drawn(stations: Sequence[Station], number: float) -> int:
    """Index of the station at this part of the whole weight."""
    left = number * sum(station.weight for station in stations)
    for index, station in enumerate(stations):
        left -= station.weight
        if left < 0:
            return index
    return len(stations) - 1
