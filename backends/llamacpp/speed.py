"""How fast something goes lately."""

MEMORY = 0.1
"""Weight of the newest observation."""


class Speed:
    """A decaying mean of a rate: units per second of work. One thread writes it, others may read it."""

    def __init__(self) -> None:
        self.per_s = 0.0

    def saw(self, units: float, seconds: float) -> None:
        if seconds > 0:
            rate = units / seconds
            self.per_s = self.per_s + MEMORY * (rate - self.per_s) if self.per_s else rate

    def seconds_for(self, units: float, *, otherwise: float) -> float:
        return units / self.per_s if self.per_s else otherwise
