"""Counters and histograms for one event loop: a dictionary and an addition, where prometheus-client takes a lock, a check of
every label and a walk over the buckets. Prometheus sees the same; the library still writes the page.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

Labels = tuple[str, ...]


class Counter:
    """
    Args:
        name: without `_total`, which the page adds.
    """

    def __init__(self, name: str, words: str, labels: Sequence[str]) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._words, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Histogram:
    """
    Args:
        bounds: upper ends of the buckets, rising; one without end is added.
    """

    def __init__(self, name: str, words: str, bounds: Sequence[float], labels: Sequence[str]) -> None:
        self._name, self._words, self._labels = name, words, labels
        self._bounds = bounds
        self._ends = [*(repr(float(bound)) for bound in bounds), "+Inf"]
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, labels: Labels, value: float) -> None:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._ends)
            self._sums[labels] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._words, labels=self._labels)
        for labels, counts in self._counts.items():
            so_far, buckets = 0, []
            for end, count in zip(self._ends, counts, strict=True):
                so_far += count
                buckets.append((end, float(so_far)))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family
