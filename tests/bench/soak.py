"""`make soak`: a gateway under half of its load for `SOAK_MINUTES`, and nothing of it may grow. Needs Linux and two cores.

The load is whole answers and streams, and a misbehaving share: clients that leave in the middle of a stream, upstreams that
cut their answers, wrong keys, bodies that are no JSON. Every second the gateway's own /metrics tells its resident memory,
open descriptors and asyncio tasks. The first fifth of the time is for settling; then the median of the last fifth is
compared with that of the second. Medians, because a noisy machine makes single samples jump.
"""

import asyncio
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import uvloop

from tests.bench.gateways import KEY, SECRETS
from tests.bench.process import GATEWAY_CORE, LOAD_CORE, free_port, running

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))

CONNECTIONS = 24
"""Each sends one request at a time, at its share of the rate: the descriptors that a sound gateway needs are bounded by it."""

CAPACITY_S = 6.0
SHARE_OF_CAPACITY = 0.5
PATIENCE_S = 20.0
"""For one answer. Longer than any pause of a busy machine, shorter than a hang."""

MAX_UNEXPECTED_SHARE = 0.01

CONFIG = """
home: {home}
server: {{port: {port}, failed_keys_per_minute: off}}  # wrong keys are part of the load, and come from one address
backends: [{{name: up, engine: openai, base_url: "http://127.0.0.1:{upstream}/v1", breaker: off}}]
models: [{{name: m, route: [up]}}]
roles:
  - name: default
    limits: [{{per: 1h, requests: 1000000000}}, {{per: 24h, tokens: 1000000000000}}, {{concurrent: 10000}}]
keys: [{{name: bench, key_env: BENCH_KEY}}]
"""
"""As the relay benchmark's. No breaker: an open one would keep the cut answers away."""


class Watched(NamedTuple):
    """`tolerance`: growth from the second to the last fifth that is no leak; in `unit`s of the metric, as all that is printed."""

    name: str
    metric: str
    unit: float
    tolerance: float
    why: str


WATCHED = (
    # The allocator's arenas and the collector's thresholds move by a few MB. At 500 requests/s a leak of 2 KB each is
    # found within one minute, and one of 40 bytes within half an hour.
    Watched("memory in MB", "process_resident_memory_bytes", 2**20, 16, "something is kept per request"),
    # A client's connection and an upstream's, for each connection of the load: so many may by chance be open or not.
    Watched("open descriptors", "process_open_fds", 1, 2 * CONNECTIONS, "sockets or files are not closed"),
    # A request is at most three tasks: the server's, its watch on the client, a read with a deadline.
    Watched("asyncio tasks", "chasqui_event_loop_tasks", 1, 3 * CONNECTIONS, "tasks do not end"),
)


class Kind(NamedTuple):
    """One way to ask. `status` is what a sound gateway answers; `leaves`: the client is gone after the first bytes."""

    name: str
    share: int
    status: int
    body: bytes
    key: str = KEY
    leaves: bool = False


def chat(*, stream: bool, behaviour: str | None = None) -> bytes:
    messages = [{"role": "user", "content": "Hello, how are you today?"}]
    body = {"model": "m", "stream": stream, "messages": messages}
    return json.dumps(body | ({"bench": behaviour} if behaviour else {})).encode()


KINDS = (
    Kind("whole answers", 50, 200, chat(stream=False)),
    Kind("streams", 30, 200, chat(stream=True)),
    Kind("clients that leave", 8, 200, chat(stream=True, behaviour="pause"), leaves=True),
    Kind("streams cut by the upstream", 3, 200, chat(stream=True, behaviour="cut")),
    Kind("answers cut by the upstream", 3, 502, chat(stream=False, behaviour="cut")),
    Kind("wrong keys", 3, 401, chat(stream=False), key="sk-wrong-0123456789abcdef"),
    Kind("bodies that are no JSON", 3, 400, b'{"model": "m", "messages": ['),
)

ROUND = [kind for place in range(50) for kind in KINDS if place * kind.share // 50 != (place + 1) * kind.share // 50]
"""Every kind as often as its share says, evenly mixed."""


@dataclass
class Tally:
    answered: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    """What came instead, in words."""

    @property
    def total(self) -> int:
        return self.answered.total() + self.unexpected.total()


class Client:
    """One connection, opened again whenever it is gone."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port = port
        self._tally = tally
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, kind: Kind) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                status = await self._asked(kind)
        except (OSError, EOFError, TimeoutError) as exc:
            self.leave()
            status = f"{type(exc).__name__}"
        if status == str(kind.status):
            self._tally.answered[kind.name] += 1
        else:
            self._tally.unexpected[f"{kind.name}: {status}"] += 1

    async def _asked(self, kind: Kind) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer {kind.key}\r\n"
            f"content-length: {len(kind.body)}\r\n\r\n".encode()
            + kind.body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        status = head[9:12].decode()
        if kind.leaves and status == "200":
            await reader.readuntil(b"\n\n")
            self.leave()
        elif length := re.search(rb"content-length: (\d+)", head):
            await reader.readexactly(int(length[1]))
        else:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        return status

    def leave(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def load(port: int, tally: Tally, *, per_s: float | None, seconds: float) -> None:
    """All connections at once for a while; together `per_s` requests, or as many as they can.

    A connection that falls behind does not catch up: a machine that was busy elsewhere gets no burst afterwards.
    """
    ends_s = time.monotonic() + seconds
    pause_s = CONNECTIONS / per_s if per_s else 0.0

    async def one(number: int) -> None:
        client = Client(port, tally)
        due_s = time.monotonic() + pause_s * number / CONNECTIONS
        turn = number * len(ROUND) // CONNECTIONS
        while (now_s := time.monotonic()) < ends_s:
            if due_s > now_s:
                await asyncio.sleep(due_s - now_s)
            due_s = max(due_s, now_s) + pause_s
            await client.ask(ROUND[turn % len(ROUND)])
            turn += 1
        client.leave()

    await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))


async def scrape(port: int) -> list[float]:
    """One number for each row of `WATCHED`, in its unit."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n\r\n")
        text = (await reader.read(-1)).decode()
        writer.close()
    found = [re.search(rf"^{watched.metric} (\S+)$", text, re.MULTILINE) for watched in WATCHED]
    assert all(found), f"/metrics does not tell what is watched: {text[:200]}"
    return [float(match[1]) / watched.unit for match, watched in zip(found, WATCHED, strict=True) if match]


async def watch(port: int, tally: Tally, samples: list[list[float]], seconds: float) -> None:
    """A sample every second, a line every minute."""
    started_s = time.monotonic()
    before = tally.total
    for second in range(1, round(seconds) + 1):
        await asyncio.sleep(max(0.0, started_s + second - time.monotonic()))
        try:
            samples.append(await scrape(port))
        except (OSError, TimeoutError) as exc:
            tally.unexpected[f"/metrics: {type(exc).__name__}"] += 1
        if samples and (second % 60 == 0 or second == round(seconds)):
            facts = ", ".join(f"{row.name} {value:.0f}" for row, value in zip(WATCHED, samples[-1], strict=True))
            print(f"{second / 60:g} min: {tally.total - before:,} requests, {facts}", flush=True)
            before = tally.total


async def soak(port: int) -> list[str]:
    """What is wrong, in sentences."""
    warm = Tally()
    await load(port, warm, per_s=None, seconds=CAPACITY_S)
    capacity = warm.total / CAPACITY_S
    per_s, seconds = capacity * SHARE_OF_CAPACITY, MINUTES * 60
    print(f"{capacity:,.0f} requests/s at most; {MINUTES:g} min at {per_s:,.0f}/s", flush=True)
    tally, samples = Tally(), list[list[float]]()
    async with asyncio.TaskGroup() as group:
        group.create_task(load(port, tally, per_s=per_s, seconds=seconds))
        group.create_task(watch(port, tally, samples, seconds))
    return [*load_problems(tally), *growth_problems(samples)]


def load_problems(tally: Tally) -> list[str]:
    """A gateway that answers wrongly has not been soaked."""
    print("\n| load | answered |\n|---|---|")
    for kind in KINDS:
        print(f"| {kind.name} | {tally.answered[kind.name]:,} |")
    print(f"| unexpected | {tally.unexpected.total():,} |\n")
    problems = [f"none of the {kind.name} got its {kind.status}" for kind in KINDS if not tally.answered[kind.name]]
    if tally.unexpected.total() > tally.total * MAX_UNEXPECTED_SHARE:
        most = ", ".join(f"{words} ({count})" for words, count in tally.unexpected.most_common(5))
        problems.append(f"{tally.unexpected.total()} of {tally.total} requests ended unexpectedly: {most}")
    return problems


def growth_problems(samples: list[list[float]]) -> list[str]:
    """Compares the medians and prints them."""
    if len(samples) < MINUTES * 60 / 2:
        return [f"/metrics answered {len(samples)} times only"]
    fifth = len(samples) // 5
    problems = []
    print("| median | second fifth | last fifth | may grow by |\n|---|---|---|---|")
    for row, values in zip(WATCHED, zip(*samples, strict=True), strict=True):
        early, late = statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])
        print(f"| {row.name} | {early:.1f} | {late:.1f} | {row.tolerance} |")
        if late - early > row.tolerance:
            problems.append(f"{row.name} grew from {early:.1f} to {late:.1f}, by more than {row.tolerance}: {row.why}")
    return problems


def main() -> None:
    if not sys.platform.startswith("linux") or (os.cpu_count() or 1) < 2 or MINUTES < 0.5:
        sys.exit("make soak needs Linux, two cores, and SOAK_MINUTES of at least 0.5")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream, port = free_port(), free_port()
        config = home / "chasqui.yaml"
        config.write_text(CONFIG.format(home=home / "var", upstream=upstream, port=port))
        stack.enter_context(running([sys.executable, "-m", "tests.bench.upstream", str(upstream)], LOAD_CORE, upstream))
        gateway = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config)]
        stack.enter_context(running(gateway, GATEWAY_CORE, port, environment=SECRETS))
        problems = uvloop.run(soak(port))
    if problems:
        sys.exit("\n".join(["", "make soak failed:", *problems]))


if __name__ == "__main__":
    main()
