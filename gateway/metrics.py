"""What Prometheus scrapes. Label values come from the configuration, never from a request: unknown names are `other`."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

DURATION_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    30,
    60,
)
OVERHEAD_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)

OTHER = "other"


class Metrics:
    """
    Args:
        models: names that may be labels; likewise `backends`, and `errors`, the codes of our own (an upstream may invent more).
    """

    def __init__(self, *, models: Iterable[str], backends: Iterable[str], errors: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per series, which no dashboard reads
        self.registry = CollectorRegistry()
        self._children: dict[tuple[object, ...], Any] = {}
        self._models = frozenset(models)
        self._backends = frozenset(backends)
        self._errors = frozenset(errors)

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(name, words, labels, registry=self.registry)

        def histogram(name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, words, labels, buckets=buckets, registry=self.registry)

        self._requests = counter(
            "chasqui_requests", "Answered requests.", "operation", "model", "backend", "status", "outcome"
        )
        self._tokens = counter("chasqui_tokens", "Tokens as settled.", "model", "type")
        self._cache = counter("chasqui_embedding_cache_items", "Inputs of embedding requests.", "result")
        self._restarts = counter("chasqui_worker_restarts", "Workers started again after a death.", "backend")
        self._duration = histogram(
            "gen_ai_server_request_duration_seconds", "From the request's head to the answer's end.",
            DURATION_BUCKETS_S, "gen_ai_operation_name", "gen_ai_request_model", "error_type",
        )  # fmt: skip
        self._first_token = histogram(
            "gen_ai_server_time_to_first_token_seconds", "Streams: to the first event.",
            FIRST_TOKEN_BUCKETS_S, "gen_ai_operation_name", "gen_ai_request_model",
        )  # fmt: skip
        self._overhead = histogram(
            "chasqui_overhead_seconds",
            "Time spent in the gateway itself before the first byte went out.",
            OVERHEAD_BUCKETS_S,
            "gen_ai_operation_name",
        )
        self.in_flight = Gauge("chasqui_requests_in_flight", "Requests being answered.", registry=self.registry)
        self._chunks = Gauge(
            "chasqui_collection_chunks", "Chunks in the index.", ["collection"], registry=self.registry
        )

    def _child(self, family: Any, *labels: str) -> Any:
        """A series; looking it up in its family costs a lock and a check of every label, so it is kept."""
        key = (id(family), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = family.labels(*labels)
        return child

    def request(
        self, *, operation: str, model: str, backend: str | None, status: int, outcome: str, seconds: float, error: str
    ) -> None:
        model = model if model in self._models else OTHER
        backend = backend if backend in self._backends else "none"
        error = error if error in self._errors or not error else OTHER
        self._child(self._requests, operation, model, backend, str(status), outcome).inc()
        self._child(self._duration, operation, model, error).observe(seconds)

    def first_byte(self, *, operation: str, model: str, stream: bool, seconds: float, overhead_s: float) -> None:
        if stream:
            self._child(self._first_token, operation, model if model in self._models else OTHER).observe(seconds)
        self._child(self._overhead, operation).observe(overhead_s)

    def tokens(self, *, model: str, input_tokens: int, output_tokens: int) -> None:
        model = model if model in self._models else OTHER
        self._child(self._tokens, model, "input").inc(input_tokens)
        self._child(self._tokens, model, "output").inc(output_tokens)

    def cache(self, *, hits: int, misses: int) -> None:
        self._cache.labels("hit").inc(hits)
        self._cache.labels("miss").inc(misses)

    def worker_restarted(self, backend: str) -> None:
        self._restarts.labels(backend).inc()

    def collection(self, name: str, chunks: int) -> None:
        self._chunks.labels(name).set(chunks)

    def render(self) -> bytes:
        return generate_latest(self.registry)
