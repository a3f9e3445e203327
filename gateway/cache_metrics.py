"""What the embedding cache holds and what has gone wrong with it, for Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from retrieval.embedding_cache import EmbeddingCache

FAULTS = ("read", "write", "damaged", "dropped")


class CacheCollector(Collector):
    """Over reloads that change the cache its faults begin anew, as after a restart."""

    def __init__(self, cache: Callable[[], EmbeddingCache]) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        cache = self._cache()
        faults = CounterMetricFamily("chasqui_embedding_cache_faults", "What has gone wrong with it.", labels=["kind"])
        for kind in FAULTS:
            faults.add_metric([kind], cache.faults[kind])
        yield faults
        yield GaugeMetricFamily("chasqui_embedding_cache_memory_bytes", "Of vectors in memory.", cache.memory.bytes)
        yield GaugeMetricFamily("chasqui_embedding_cache_memory_vectors", "In memory.", len(cache.memory))
        yield GaugeMetricFamily("chasqui_embedding_cache_waiting", "Vectors not in the database yet.", cache.waiting)

    def describe(self) -> list[Metric]:
        return []
