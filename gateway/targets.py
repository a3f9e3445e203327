"""What a model name stands for, and for whom. A name that a caller may not use does not exist for it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from backends.health import Watched
from gateway.settings_schema import ModelSettings
from gateway.tries import random_jitter
from policies.errors import ModelUnknown
from policies.prompts import Prompt
from policies.roles import Caller
from policies.routing import Station, attempts, expand


@dataclass(frozen=True, slots=True)
class Target:
    settings: ModelSettings
    stations: tuple[Station, ...]
    prompt: Prompt | None


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
            name: Target(model, tuple(expand(name, by_name, backends)), prompts[model.prompt] if model.prompt else None)
            for name, model in by_name.items()
        }

    def resolve(self, name: str, caller: Caller) -> Target:
        """
        Raises:
            ModelUnknown: no such name, or not for this caller.
        """
        target = self._targets.get(name)
        if target is None or not self._visible(target, caller):
            raise ModelUnknown(name)
        return target

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
        """Exactly the names that `resolve` accepts from this caller, in the configuration's order."""
        return [name for name, target in self._targets.items() if self._visible(target, caller)]

    def _visible(self, target: Target, caller: Caller) -> bool:
        return (
            caller.may("models", target.settings.name)
            and all(caller.may("collections", collection) for collection in target.settings.collections)
            and (target.prompt is None or caller.may("prompts", target.prompt.name))
            and any(caller.may("backends", station.backend) for station in target.stations)
        )
