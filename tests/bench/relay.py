"""`make bench-relay`: what a gateway adds, as ratios in one run. Each gateway on one core, load and upstream on the other.

Needs wrk. nginx, Portkey and LiteLLM stand beside Chasqui where they are installed (`make bench-peers` brings the last
two). They run one after the other, each alone. Everything is on the loopback and bounded in time.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path

from tests.bench.answers import WrongAnswer, check
from tests.bench.gateways import ALL, Gateway, NotInstalled
from tests.bench.load import Figures, Load, measure_all
from tests.bench.process import GATEWAY_CORE, LOAD_CORE, NotRunning, free_port, running

COLUMNS = (
    "load", "gateway", "answers/s", "p50 ms", "p99 ms", "added p50 ms", "added p99 ms",
    "CPU ms/answer", "CPU % of a core", "of nginx", "× LiteLLM", "× Portkey",
)  # fmt: skip

NOTE = f"""
One run on core {GATEWAY_CORE} (gateway) and core {LOAD_CORE} (load and upstream); the CPU beside `direct` is the upstream's.
Latencies are those of whole answers. The upstream sets the rate of the 200 paced streams: compare what is added, and the CPU.
Goals: 64 connections ≥ 0.15 of nginx, ≥ 70 × LiteLLM, ≥ 8 × Portkey; streams ≥ 0.8 of nginx, ≥ 100 × LiteLLM; one
connection: added p50 ≤ 0.3 ms."""

Results = dict[str, dict[Load, Figures]]


def main() -> None:
    if not (shutil.which("wrk") and shutil.which("taskset")) or (os.cpu_count() or 1) < 2:
        sys.exit("make bench-relay needs wrk (apt-get install wrk), taskset (util-linux) and two cores")
    with tempfile.TemporaryDirectory() as directory:
        results = dict(measured(Path(directory)))
    for line in table(results):
        print(line)
    print(NOTE)
    if "chasqui" not in results:
        sys.exit("make bench-relay: Chasqui itself could not be measured")


def measured(home: Path) -> Iterator[tuple[str, dict[Load, Figures]]]:
    direct = Gateway("direct", port := free_port(), [sys.executable, "-m", "tests.bench.upstream", str(port)])
    with running(direct.command, LOAD_CORE, port) as process:
        say("measuring the upstream itself")
        check(direct)
        yield direct.name, measure_all(home, direct, process)
        for make in ALL:
            try:
                gateway = make(home, port)
                yield gateway.name, measure_one(home, gateway)
            except (NotInstalled, NotRunning, WrongAnswer) as reason:
                say(f"{make.__name__} is left out: {' '.join(str(reason).split())}")


def measure_one(home: Path, gateway: Gateway) -> dict[Load, Figures]:
    say(f"measuring {gateway.name}")
    environment, start_s = gateway.environment, gateway.start_s
    with running(gateway.command, GATEWAY_CORE, gateway.port, environment=environment, start_s=start_s) as process:
        check(gateway)
        return measure_all(home, gateway, process)


def table(results: Results) -> Iterator[str]:
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for load in results["direct"]:
        for name in results:
            yield f"| {load.name} | {name} | {' | '.join(cells(results, load, name))} |"


def cells(results: Results, load: Load, name: str) -> Iterator[str]:
    figures, direct = results[name][load], results["direct"][load]
    yield f"{figures.per_s:,.{1 if figures.per_s < 1000 else 0}f}" + (
        f" ({figures.failed} failed)" if figures.failed else ""
    )
    yield number(figures.p50_ms, 3)
    yield number(figures.p99_ms, 3)
    yield number(figures.p50_ms - direct.p50_ms, 3) if name != "direct" else ""
    yield number(figures.p99_ms - direct.p99_ms, 3) if name != "direct" else ""
    yield number(figures.cpu_ms, 3)
    yield f"{figures.cpu_share:.0%}"
    for peer in ("nginx", "litellm", "portkey"):
        yield number(ratio(figures, results[peer][load]), 2) if name == "chasqui" and peer in results else ""


def ratio(ours: Figures, theirs: Figures) -> float:
    return ours.per_s / theirs.per_s if theirs.per_s else nan


def number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{value:,.{digits}f}"


def say(words: str) -> None:
    print(words, file=sys.stderr)


if __name__ == "__main__":
    main()
