"""`make bench-relay`: what a gateway adds, as ratios in one run. Gateways on one core, load and upstream on the other.

Needs wrk; nginx stands beside it as the measure where it is installed. Everything is on the loopback and bounded in time.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "sk-bench-0123456789abcdef"
SECONDS = int(os.environ.get("BENCH_SECONDS", "5"))

GATEWAY_CORE, LOAD_CORE = "0", "1"

CONFIG = """
home: {home}
server: {{port: {port}}}
backends: [{{name: up, engine: openai, base_url: "http://127.0.0.1:{upstream}/v1"}}]
models: [{{name: m, route: [up]}}]
roles:
  - name: default
    limits: [{{per: 1h, requests: 1000000000}}, {{per: 24h, tokens: 1000000000000}}, {{concurrent: 10000}}]
keys: [{{name: bench, key_env: BENCH_KEY}}]
"""

NGINX = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/nginx.err;
events {{ worker_connections 4096; }}
http {{
  access_log {home}/nginx.log; client_body_temp_path {home}/b; proxy_temp_path {home}/p;
  fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""

LUA = """
wrk.method = "POST"
wrk.body = '{{"model": "m", "stream": {stream}, "messages": [{{"role": "user", "content": "Hello, how are you today?"}}]}}'
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
"""


class Figures(NamedTuple):
    per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


class Load(NamedTuple):
    name: str
    connections: int
    stream: bool


LOADS = (
    Load("one connection", 1, False),
    Load("64 connections", 64, False),
    Load("streams of 50 events, 32 connections", 32, True),
)


def main() -> None:
    if shutil.which("wrk") is None or (os.cpu_count() or 1) < 2:
        sys.exit("make bench-relay needs wrk (apt-get install wrk) and two cores")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = free_port()
        stack.enter_context(running([sys.executable, "-m", "tests.bench.upstream", str(upstream)], LOAD_CORE, upstream))
        targets = {"direct": upstream}
        if shutil.which("nginx"):
            targets["nginx"] = stack.enter_context(nginx(home, upstream))
        targets["chasqui"] = stack.enter_context(chasqui(home, upstream))
        results = {load: {name: measure(home, port, load) for name, port in targets.items()} for load in LOADS}
    print_table(results)


def print_table(results: dict[Load, dict[str, Figures]]) -> None:
    print("| load | | requests/s | p50 ms | p99 ms | added p50 ms | of nginx |\n|---|---|---|---|---|---|---|")
    for load, rows in results.items():
        for name, figures in rows.items():
            added = f"{figures.p50_ms - rows['direct'].p50_ms:.2f}" if name != "direct" else ""
            share = f"{figures.per_s / rows['nginx'].per_s:.3f}" if "nginx" in rows and name == "chasqui" else ""
            failed = f" ({figures.failed} failed)" if figures.failed else ""
            numbers = f"{figures.per_s:,.0f}{failed} | {figures.p50_ms:.2f} | {figures.p99_ms:.2f}"
            print(f"| {load.name} | {name} | {numbers} | {added} | {share} |")


def measure(home: Path, port: int, load: Load) -> Figures:
    script = home / "post.lua"
    script.write_text(LUA.format(stream=str(load.stream).lower(), key=KEY))
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{load.connections}", "--latency", "-s", str(script)]
    subprocess.run([*command, "-d1", url], capture_output=True, check=True)
    printed = subprocess.run([*command, f"-d{SECONDS}", url], capture_output=True, text=True, check=True).stdout
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", printed)
    return Figures(
        per_s=float(re.search(r"Requests/sec:\s+([\d.]+)", printed)[1]),  # type: ignore[index]
        p50_ms=milliseconds(printed, "50%"),
        p99_ms=milliseconds(printed, "99%"),
        failed=int(failed[1]) if failed else 0,
    )


def milliseconds(printed: str, line: str) -> float:
    match = re.search(rf"{line}\s+([\d.]+)(us|ms|s)\b", printed)
    assert match, printed
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


@contextmanager
def nginx(home: Path, upstream: int) -> Iterator[int]:
    port = free_port()
    config = home / "nginx.conf"
    config.write_text(NGINX.format(home=home, upstream=upstream, port=port))
    with running(["nginx", "-p", str(home), "-c", str(config)], GATEWAY_CORE, port):
        yield port


@contextmanager
def chasqui(home: Path, upstream: int) -> Iterator[int]:
    port = free_port()
    config = home / "chasqui.yaml"
    config.write_text(CONFIG.format(home=home / "var", upstream=upstream, port=port))
    with running([sys.executable, "-m", "gateway.cli", "serve", "--config", str(config)], GATEWAY_CORE, port):
        yield port


@contextmanager
def running(command: list[str], core: str, port: int) -> Iterator[None]:
    """The command on one core, from the moment its port answers; its words go to a file, as a service's would."""
    environment = os.environ | {"BENCH_KEY": KEY, "CHASQUI_ADMIN_KEY": "sk-admin-0123456789abcdef"}
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command], cwd=ROOT, env=environment, stdout=words, stderr=words
        )
        try:
            deadline = time.monotonic() + 20
            while not answers(port):
                assert process.poll() is None and time.monotonic() < deadline, f"{command} does not answer on {port}"
            yield
        finally:
            process.terminate()
            process.wait(20)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
