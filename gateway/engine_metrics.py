"""What workers of this machine count, for Prometheus: from what they told last, without asking them while the page is written."""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from backends.llamacpp.member import Member

COUNTERS = {
    # what a worker calls it -> (series, its label `kind`)
    "prompt_tokens": ("chasqui_engine_tokens", "prompt"),
    "shared_tokens": ("chasqui_engine_tokens", "reused"),
    "generated_tokens": ("chasqui_engine_tokens", "generated"),
    "tokens": ("chasqui_engine_tokens", "embedded"),
    "steps": ("chasqui_engine_steps", None),
    "busy_s": ("chasqui_engine_busy_seconds", None),
    "preempted": ("chasqui_engine_preemptions", None),
    "cancelled": ("chasqui_engine_cancellations", None),
}

OF_VECTORS = ("tokens",)
"""Counters that only workers have that generate nothing."""

WORDS = {
    "chasqui_engine_tokens": "Tokens: prompts decoded, reused from another one's beginning, generated, embedded.",
    "chasqui_engine_steps": "Calls of llama.cpp.",
    "chasqui_engine_busy_seconds": "That llama.cpp was at work.",
    "chasqui_engine_preemptions": "Sequences that had to wait again for lack of cells.",
    "chasqui_engine_cancellations": "Sequences and texts whose client had left, or had enough.",
}

GAUGES = {
    "running": ("chasqui_engine_running", "Sequences or texts that are worked on."),
    "waiting": ("chasqui_engine_waiting", "Those that wait inside the worker."),
    "memory_bytes": ("chasqui_engine_memory_bytes", "Resident memory of the worker."),
    "tokens_per_second": ("chasqui_engine_tokens_per_second", "Generated lately, of all sequences together."),
}


class EngineCollector(Collector):
    def __init__(self, members: Callable[[], Iterable[Member]]) -> None:
        self._members = members

    def collect(self) -> Iterator[Metric]:
        members = sorted(self._members(), key=lambda member: member.name)
        yield from self._counters(members)
        for told, (name, words) in GAUGES.items():
            gauge = GaugeMetricFamily(name, words, labels=["backend"])
            for backend, same in groupby(members, key=lambda member: member.name):
                gauge.add_metric([backend], sum(float(member.status_told.get(told) or 0) for member in same))
            yield gauge

    def _counters(self, members: list[Member]) -> Iterator[Metric]:
        kinds = {name: kind is not None for name, kind in COUNTERS.values()}
        families = {
            name: CounterMetricFamily(name, WORDS[name], labels=["backend", "kind"] if has_kind else ["backend"])
            for name, has_kind in kinds.items()
        }
        for backend, same in groupby(members, key=lambda member: member.name):
            both = list(same)  # one that a reload has replaced lives on until its last request has ended
            for told, (name, kind) in COUNTERS.items():
                if (both[0].settings.serves == "chat") is (told not in OF_VECTORS) or kind is None:
                    total = sum(member.totals.all().get(told, 0) for member in both)
                    families[name].add_metric([backend, kind] if kind else [backend], total)
        yield from families.values()
