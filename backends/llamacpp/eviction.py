"""Which models have to leave memory for another one. Pure: facts in, names out."""

from collections.abc import Iterable
from typing import NamedTuple


class Loaded(NamedTuple):
    """A model that has a place in memory, or is on its way there."""

    name: str
    memory_bytes: int
    last_use_s: float
    users: int
    """Requests that it is at work on."""
    stays: bool
    """It is pinned."""


class Limits(NamedTuple):
    """None: no limit."""

    models: int | None = None
    memory_bytes: int | None = None

    def hold(self, models: int, memory_bytes: int) -> bool:
        return (self.models is None or models <= self.models) and (
            self.memory_bytes is None or memory_bytes <= self.memory_bytes
        )


def leavers(loaded: Iterable[Loaded], newcomer_bytes: int, limits: Limits) -> list[str] | None:
    """The fewest that have to go so that one more fits: idle ones before those at work, the longest unused first.

    Returns:
        Names in the order in which they should go; None: it does not fit, whoever goes.
    """
    present = list(loaded)
    models, memory = len(present) + 1, sum(one.memory_bytes for one in present) + newcomer_bytes
    going: list[Loaded] = []
    candidates = sorted((one for one in present if not one.stays), key=lambda one: (one.users > 0, one.last_use_s))
    while not limits.hold(models, memory):
        if not candidates:
            return None
        one = candidates.pop(0)
        going.append(one)
        models, memory = models - 1, memory - one.memory_bytes
    return [one.name for one in _needed(going, models, memory, limits)]


def _needed(going: list[Loaded], models: int, memory: int, limits: Limits) -> list[Loaded]:
    """Without those that could stay after all, because somebody larger goes, too."""
    kept = list(going)
    for one in going:
        if limits.hold(models + 1, memory + one.memory_bytes):
            kept.remove(one)
            models, memory = models + 1, memory + one.memory_bytes
    return kept
