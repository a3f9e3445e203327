"""The loads, and wrk which brings them: one thread on the load's core, figures in microseconds from its own report."""

import json
import os
import subprocess
import time
from math import nan
from pathlib import Path
from typing import NamedTuple

from tests.bench.gateways import Gateway, request_body
from tests.bench.process import LOAD_CORE, NotRunning, Process, cpu_s, settle
from tests.bench.upstream import EVENTS, PACE_S, PACED

SECONDS = int(os.environ.get("BENCH_SECONDS", "5"))
LONGEST_S = 60

LUA = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
function done(summary, latency)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format("figures %d %d %d %d %d %d", summary.duration, summary.requests, errors.status, broken,
    latency:percentile(50), latency:percentile(99)))
end
"""

# Paced streams that all begin in one instant would stay in step and bring every event as a burst of 200. The first ones
# are spread over a second, and over all of the milliseconds between two events (7 and 20 have no common divisor).
SPREAD = """
local begun = 0
function delay()
  begun = begun + 1
  return begun <= {connections} and begun * 7 % 1000 or 0
end
"""


class Load(NamedTuple):
    name: str
    connections: int
    stream: bool = False
    paced: bool = False


class Figures(NamedTuple):
    """Latencies of whole answers; not a number where none came."""

    per_s: float
    failed: int
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Of the gateway, per answer."""
    cpu_share: float
    """Of one core, over the run."""


LOADS = (
    Load("one connection", 1),
    Load("64 connections", 64),
    Load(f"streams of {EVENTS} events, 32 connections", 32, stream=True),
    Load(f"200 streams, {PACE_S * 1000:.0f} ms between events", 200, stream=True, paced=True),
)


def measure_all(home: Path, gateway: Gateway, process: Process) -> dict[Load, Figures]:
    return {load: measure(home, gateway, process, load) for load in LOADS}


def measure(home: Path, gateway: Gateway, process: Process, load: Load) -> Figures:
    """For as long as asked; longer where a slow gateway needs it for two whole answers on every connection."""
    if not load.paced:
        wrk(home, gateway, process, load, 1)  # warm: connections, caches, compilers
    seconds = max(2 * SECONDS, 4) if load.paced else SECONDS
    while True:
        figures = wrk(home, gateway, process, load, seconds)
        if figures.per_s * seconds >= 2 * load.connections or seconds >= LONGEST_S:
            return figures
        seconds = min(2 * seconds, LONGEST_S)


def wrk(home: Path, gateway: Gateway, process: Process, load: Load, seconds: int) -> Figures:
    script = home / "load.lua"
    script.write_text(lua(gateway, load))
    # wrk counts what takes longer than its timeout as an error, outside of the percentiles.
    options = ["-t1", f"-c{load.connections}", f"-d{seconds}", "--timeout", f"{seconds + 1}s", "-s", str(script)]
    command = ["taskset", "-c", LOAD_CORE, "wrk", *options, f"http://127.0.0.1:{gateway.port}/v1/chat/completions"]
    settle(process)
    cpu_before, began = cpu_s(process), time.monotonic()
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    except subprocess.SubprocessError as exc:
        raise NotRunning(f"wrk gave up on it: {load.name}: {exc}") from exc
    used_s, took_s = cpu_s(process) - cpu_before, time.monotonic() - began
    if process.poll() is not None:
        raise NotRunning(f"it ended under load: {load.name}")
    return figures_in(printed, used_s, took_s)


def figures_in(printed: str, used_s: float, took_s: float) -> Figures:
    line = next(line for line in printed.splitlines() if line.startswith("figures "))
    duration_us, answers, refused, broken, p50_us, p99_us = map(int, line.split()[1:])
    good = answers - refused
    return Figures(
        per_s=good / duration_us * 1e6,
        failed=refused + broken,
        p50_ms=p50_us / 1000 if good else nan,
        p99_ms=p99_us / 1000 if good else nan,
        cpu_ms=used_s * 1000 / good if good else nan,
        cpu_share=used_s / took_s,
    )


def lua(gateway: Gateway, load: Load) -> str:
    message = "Hello, how are you today?" + (f" ({PACED})" if load.paced else "")
    headers = "\n".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in gateway.headers.items()
    )
    script = LUA.format(body=request_body(message, stream=load.stream), headers=headers)
    return script + (SPREAD.format(connections=load.connections) if load.paced else "")
