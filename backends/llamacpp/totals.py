"""Counters of a process that may end and be started again, as one that never goes back."""

from collections.abc import Mapping


class Totals:
    def __init__(self) -> None:
        self._ended: dict[str, float] = {}
        self._current: dict[str, float] = {}

    def saw(self, counters: Mapping[str, float]) -> None:
        """What the process counts now, since its start."""
        self._current = dict(counters)

    def ended(self) -> None:
        """The next counters are another process's."""
        for name, value in self._current.items():
            self._ended[name] = self._ended.get(name, 0) + value
        self._current = {}

    def all(self) -> dict[str, float]:
        names = {**self._ended, **self._current}
        return {name: self._ended.get(name, 0) + self._current.get(name, 0) for name in names}
