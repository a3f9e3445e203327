"""What Prometheus scrapes. Label values come from the configuration, never from a request: unknown names are `other`."""

import asyncio
import logging
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics, generate_latest

from gateway.exchange import Exchange
from gateway.series import Counter, Histogram
from policies.quotas import Measure

log = logging.getLogger("chasqui")

DURATION_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
# fmt: off
FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 30, 60,
)
# fmt: on
OVERHEAD_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)

RETRIEVAL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

OTHER = "other"


class Metrics:
    """
    Args:
        errors: the codes of our own; an upstream may invent more.
    """

    def __init__(self, *, errors: Iterable[str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series per series, which no dashboard reads
        self.registry = CollectorRegistry()
        self._models: frozenset[str] = frozenset()
        self._backends: frozenset[str] = frozenset()
        self._errors = frozenset(errors)
        self.in_flight = 0

        self._requests = self._counter(
            "chasqui_requests", "Answered requests.", "operation", "model", "backend", "status", "outcome"
        )
        self._tokens = self._counter("chasqui_tokens", "Tokens as settled.", "model", "type")
        self._count_limits()
        self._throttled = self._counter("chasqui_addresses_throttled", "Addresses with too many unknown keys.")
        self._throttled.add((), 0)
        self._cache = self._counter("chasqui_embedding_cache_items", "Inputs of embedding requests.", "result")
        self._restarts = self._counter("chasqui_worker_restarts", "Workers started again after a death.", "backend")
        self._reloads = self._counter("chasqui_config_reloads", "Changed configurations.", "result")
        self._duration = self._histogram(
            "gen_ai_server_request_duration_seconds", "From the request's head to the answer's end.",
            DURATION_BUCKETS_S, "gen_ai_operation_name", "gen_ai_request_model", "error_type",
        )  # fmt: skip
        self._first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds", "Streams: to the first event.",
            FIRST_TOKEN_BUCKETS_S, "gen_ai_operation_name", "gen_ai_request_model",
        )  # fmt: skip
        self._count_retrieval()
        self._overhead = self._histogram(
            "chasqui_overhead_seconds",
            "Time spent in the gateway itself before the first byte went out.",
            OVERHEAD_BUCKETS_S,
            "gen_ai_operation_name",
        )
        self.follow("chasqui_requests_in_flight", "Requests being answered.", lambda: self.in_flight)
        self._chunks = Gauge(
            "chasqui_collection_chunks", "Chunks in the index.", ["collection"], registry=self.registry
        )
        self.follow("chasqui_event_loop_tasks", "asyncio tasks that are not done.", running_tasks)
        ProcessCollector(registry=self.registry)

    def _count_retrieval(self) -> None:
        self._retrieval = self._histogram(
            "chasqui_retrieval_seconds", "From a question to its passages.", RETRIEVAL_BUCKETS_S
        )
        self._retrievals = self._counter("chasqui_retrievals", "Questions that were searched for.", "result")
        self._degraded = self._counter("chasqui_retrieval_degraded", "Ways of looking that failed.", "leg")
        self._passages = self._counter("chasqui_retrieval_passages", "Passages that fitted, and that did not.", "state")
        self._neutralised = self._counter(
            "chasqui_retrieval_neutralised", "Control tokens and played turns in passages, made plain."
        )

    def _count_limits(self) -> None:
        self._cost = self._counter("chasqui_cost_usd", "Cost of requests by the prices of models.", "model")
        self._compute = self._counter("chasqui_compute_seconds", "Work of this machine's engines on requests.", "model")
        self._held = self._counter("chasqui_quota_tokens", "Tokens held before the work, and used in the end.", "state")
        self._refused = self._counter("chasqui_quota_refusals", "Requests over a limit.", "measure")
        self._store_down = self._counter(
            "chasqui_quota_store_down", "Requests that met a store of limits that did not answer.", "decision"
        )

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        made = Counter(name, words, labels)
        self.registry.register(made)
        return made

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        made = Histogram(name, words, buckets, labels)
        self.registry.register(made)
        return made

    def follow(self, name: str, words: str, value: Callable[[], float]) -> None:
        """A number that is asked for when the page is."""
        Gauge(name, words, registry=self.registry).set_function(value)

    def name(self, *, models: Iterable[str], backends: Iterable[str]) -> None:
        """What may be labels from now on. Series that are there stay: a counter must not vanish."""
        self._models, self._backends = frozenset(models), frozenset(backends)

    def observe(self, exchange: Exchange, status: int, seconds: float) -> None:
        """An answered request, whatever its end."""
        model = exchange.entry if exchange.entry in self._models else OTHER
        backend = exchange.backend if exchange.backend in self._backends else "none"
        error = exchange.error if exchange.error in self._errors or not exchange.error else OTHER
        outcome = exchange.outcome if exchange.status else "client_left"
        self._requests.add((exchange.operation, model, backend or "none", str(status), outcome))
        self._duration.observe((exchange.operation, model, error), seconds)
        self._tokens.add((model, "input"), exchange.usage.prompt_tokens)
        self._tokens.add((model, "output"), exchange.usage.completion_tokens)

    def settled(self, exchange: Exchange, *, cost: int, work_ms: int) -> None:
        """
        Args:
            cost: in billionths of a dollar.
        """
        model = exchange.entry if exchange.entry in self._models else OTHER
        if cost:
            self._cost.add((model,), cost / Measure.COST.unit)
        if work_ms:
            self._compute.add((model,), work_ms / 1000)
        if held := exchange.held.get(Measure.TOKENS):
            self._held.add(("held",), held)
            self._held.add(("used",), exchange.usage.total_tokens)

    def refused(self, measure: Measure) -> None:
        self._refused.add((measure.value,))

    def address_throttled(self, network: str) -> None:
        log.warning("too many unknown keys from %s; for a minute, only keys used from there before are let in", network)
        self._throttled.add(())

    def store_down(self, decision: str) -> None:
        self._store_down.add((decision,))

    def first_byte(self, *, operation: str, model: str, stream: bool, seconds: float, overhead_s: float) -> None:
        if stream:
            self._first_token.observe((operation, model if model in self._models else OTHER), seconds)
        self._overhead.observe((operation,), overhead_s)

    def cache(self, *, hits: int, misses: int) -> None:
        self._cache.add(("hit",), hits)
        self._cache.add(("miss",), misses)

    def reloaded(self, *, taken: bool) -> None:
        self._reloads.add(("taken" if taken else "refused",))

    def worker_restarted(self, backend: str) -> None:
        self._restarts.add((backend,))

    def collection(self, name: str, chunks: int) -> None:
        self._chunks.labels(name).set(chunks)

    def retrieved(self, *, seconds: float, found: int) -> None:
        self._retrieval.observe((), seconds)
        self._retrievals.add(("found" if found else "empty",))

    def degraded(self, leg: str) -> None:
        self._degraded.add((leg,))

    def packed(self, *, shown: int, left_out: int, hits: int) -> None:
        """
        Args:
            hits: what in passages tried to be more than text.
        """
        self._passages.add(("shown",), shown)
        self._passages.add(("left_out",), left_out)
        self._neutralised.add((), hits)

    def render(self) -> bytes:
        return generate_latest(self.registry)


def running_tasks() -> int:
    """Of the loop that renders; 0 outside of one."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
