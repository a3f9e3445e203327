"""What a model name stands for, and for whom. A name that a caller may not use does not exist for it."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from backends.health import Watched
from gateway.settings_schema import ModelSettings
from gateway.tries import random_jitter
from policies.errors import ModelUnknown
from policies.prices import Price
from policies.prompts import Prompt
from policies.roles import Caller
from policies.routing import Station, attempts, expand, named

PLAIN_NAME = re.compile(r"[!-~]{1,256}")
"""A name that a wildcard stands for goes into headers and addresses."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    """What the caller asks for."""
    settings: ModelSettings
    stations: tuple[Station, ...]
    prompt: Prompt | None
    price: Price


class Targets:
    """All model names of a configuration, resolved once."""

    def __init__(
        self,
        models: Iterable[ModelSettings],
        backends: Mapping[str, Watched],
        prompts: Mapping[str, Prompt],
        *,
        draw: Callable[[], float] = random_jitter,
    ) -> None:
        self._backends = backends
        self._draw = draw
        by_name = {model.name: model for model in models}
        self._targets = {
            name: Target(
                name,
                model,
                tuple(expand(name, by_name, backends)),
                prompts[model.prompt] if model.prompt else None,
                Price(model.price),
            )
            for name, model in by_name.items()
        }
        wild = [name for name in self._targets if name.endswith("*")]
        self._wild = sorted(wild, key=len, reverse=True)  # the closest first

    def resolve(self, name: str, caller: Caller) -> Target:
        """
        Raises:
            ModelUnknown: no such name, or not for this caller.
        """
        target = self._targets.get(name) or self._named(name)
        if target is None or not self._visible(target, caller):
            raise ModelUnknown(name)
        return target

    def configured(self, name: str) -> Target:
        """The entry of this name, for the gateway's own questions."""
        return self._targets[name]

    def _named(self, name: str) -> Target | None:
        """The wildcard entry that stands for a name, with its stations as they call it."""
        entry = next((wild for wild in self._wild if name.startswith(wild[:-1]) and name != wild[:-1]), None)
        if entry is None or not PLAIN_NAME.fullmatch(name):
            return None
        target = self._targets[entry]
        return replace(target, name=name, stations=tuple(named(target.stations, name, entry)))

    def stations(self, target: Target, caller: Caller) -> list[Station]:
        """Those of the route that this caller may use, in the order in which they are to be asked now."""
        return attempts(
            target.stations,
            strategy=target.settings.strategy,
            allowed=lambda backend: caller.may("backends", backend),
            facts=lambda backend: self._backends[backend].facts,
            draw=self._draw,
        )

    def names(self, caller: Caller) -> list[str]:
        """The names that `resolve` accepts from this caller, in the configuration's order; not those behind a wildcard,
        which only its backend knows."""
        return [
            name for name, target in self._targets.items() if not name.endswith("*") and self._visible(target, caller)
        ]

    def _visible(self, target: Target, caller: Caller) -> bool:
        if not caller.may("models", target.name):
            return False
        if target.prompt is not None and not caller.may("prompts", target.prompt.name):
            return False
        for collection in target.settings.collections:
            if not caller.may("collections", collection):
                return False
        for station in target.stations:  # noqa: SIM110 - on the hot path, where a generator costs more than its loop
            if caller.may("backends", station.backend):
                return True
        return False
