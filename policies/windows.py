"""Counters of one process: how much lies in a window, and when it will be free."""

from policies.spans import Span, expires_s


class Window:
    """What was used within a span, by slices."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._now = 0  # the slice of the present, from `_from_s` until `_until_s`
        self._from_s = self._until_s = 0.0
        self._slices: dict[int, int] = {}  # number of the slice -> used in it; in order, because time only goes forward
        self._total = 0

    def slice_at(self, now_s: float) -> int:
        if not self._from_s <= now_s < self._until_s:
            self._now = self.span.slice_at(now_s)
            self._from_s, self._until_s = self.span.start_s(self._now), self.span.start_s(self._now + 1)
            self._sweep()
        return self._now

    def used(self, now_s: float) -> int:
        self.slice_at(now_s)
        return self._total

    def add(self, slice_number: int, amount: int) -> None:
        """Only to the present slice, or less of one that was charged before; one that has expired is past correcting."""
        if amount > 0 or slice_number in self._slices:
            before = self._slices.get(slice_number, 0)
            after = self._slices[slice_number] = max(0, before + amount)
            self._total += after - before

    def free_in_s(self, now_s: float, amount: int) -> float:
        """Seconds until at least `amount` of what is used now has expired."""
        freed = 0
        for number, used in self._slices.items():
            freed += used
            if freed >= amount:
                return expires_s(self.span, number) - now_s
        return 0.0

    def reset_in_s(self, now_s: float) -> float:
        for number in reversed(self._slices):
            if self._slices[number]:
                return max(0.0, expires_s(self.span, number) - now_s)
        return 0.0

    def _sweep(self) -> None:
        oldest = self._now - self.span.lasting
        while self._slices and (first := next(iter(self._slices))) < oldest:
            self._total -= self._slices.pop(first)


class Gauge:
    """How many at this moment."""

    def __init__(self) -> None:
        self.value = 0
