"""The worker beside llama-cpp-python's server and llama-server, on the same generated model. `make bench-engine`.

Each is asked for streams by 1 and by 8 clients for some seconds: tokens a second of all of them, and how long the first one took. The
peers take part where they are found: `llama-server` on PATH (or LLAMA_SERVER), llama-cpp-python's in `.venv-bench/llama` (`make bench-peers`).
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import aiohttp
import httpx

from backends.llamacpp.synthetic import write_synthetic

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = float(os.environ.get("BENCH_SECONDS", "8"))
THREADS = str(os.cpu_count() or 1)
SLOTS, CONTEXT = 8, 8192
ANSWER_TOKENS = 64
EMBEDDING_CLIENTS = 32
TEXT = (
    "the station where runners waited was built of stone beside the road, with a roof of grass and a fire in the middle"
)
KEY = "sk-bench-0123456789abcdef"
PROMPT = "the road runs over a high bridge and the river carries a message to the station " * 3


class Figures(NamedTuple):
    tokens_per_s: float
    first_p50_s: float
    first_p95_s: float


class Server(NamedTuple):
    name: str
    command: list[str]
    environment: Mapping[str, str]


def servers(model: Path, port: int) -> Iterator[Server]:
    worker = ["-m", "backends.llamacpp.worker", "--model", str(model), "--port", str(port), "--threads", THREADS]
    sizes = ["--slots", str(SLOTS), "--context-tokens", str(CONTEXT)]
    yield Server("chasqui's worker", [sys.executable, *worker, *sizes], {"CHASQUI_WORKER_KEY": KEY})
    theirs = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if theirs:
        options = ["-m", str(model), "--port", str(port), "-t", THREADS, "-np", str(SLOTS), "-c", str(CONTEXT)]
        yield Server("llama-server", [theirs, *options, "--api-key", KEY, "--no-webui"], {})
    python = ROOT / ".venv-bench" / "llama" / "bin" / "python"
    if python.exists():
        options = ["-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_threads", THREADS]
        yield Server(
            "llama-cpp-python's", [str(python), *options, "--n_ctx", str(CONTEXT), "--api_key", KEY,
            "--interrupt_requests", "false"], {},
        )  # fmt: skip


@contextmanager
def running(server: Server, port: int, *, path: str = "completions") -> Iterator[int]:
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            server.command, cwd=ROOT, env={**os.environ, **server.environment}, stdout=words, stderr=words
        )
        try:
            deadline = time.monotonic() + 60
            while True:
                assert process.poll() is None and time.monotonic() < deadline, f"{server.name} did not start"
                with suppress(httpx.HTTPError):
                    headers = {"authorization": f"Bearer {KEY}"}
                    body = {"model": "m", "prompt": "the", "input": "the", "max_tokens": 1}
                    if httpx.post(f"http://127.0.0.1:{port}/v1/{path}", json=body, headers=headers).is_success:
                        break
            yield process.pid
        finally:
            process.terminate()
            process.wait(20)


async def ask(port: int, clients: int, seconds: float) -> Figures:
    firsts: list[float] = []
    tokens = 0
    ends = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal tokens
        count = 0
        while time.perf_counter() < ends:
            count += 1
            body = {
                "model": "m", "prompt": f"{number} {count} {PROMPT}", "max_tokens": ANSWER_TOKENS, "stream": True,
                "temperature": 0, "ignore_eos": True, "logit_bias": {},
            }  # fmt: skip
            began = time.perf_counter()
            seen = False
            async with session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    choices = json.loads(line[6:]).get("choices") or [{}]
                    if choices[0].get("text"):
                        if not seen:
                            firsts.append(time.perf_counter() - began)
                            seen = True
                        tokens += time.perf_counter() < ends

    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # llama-server closes after an answer, whatever it says
    headers = {"authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session, number) for number in range(clients)))
        del began
    return Figures(tokens / seconds, statistics.median(firsts), sorted(firsts)[int(len(firsts) * 0.95)])


async def embed(port: int, clients: int, seconds: float) -> float:
    """Texts a second."""
    done, ends = 0, time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal done
        count = 0
        while time.perf_counter() < ends:
            count += 1
            body = {"model": "m", "input": f"{number} {count} {TEXT}"}
            async with session.post(f"http://127.0.0.1:{port}/v1/embeddings", json=body) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()
            done += time.perf_counter() < ends

    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}, connector=connector) as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return done / seconds


def embedding_servers(model: Path, port: int) -> Iterator[Server]:
    worker = ["-m", "backends.llamacpp.worker", "--model", str(model), "--port", str(port), "--threads", THREADS]
    yield Server("chasqui's worker", [sys.executable, *worker, "--serves", "embeddings"], {"CHASQUI_WORKER_KEY": KEY})
    theirs = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if theirs:
        options = [
            "-m",
            str(model),
            "--port",
            str(port),
            "-t",
            THREADS,
            "--embeddings",
            "-np",
            "8",
            "--pooling",
            "mean",
        ]
        yield Server("llama-server", [theirs, *options, "--api-key", KEY, "--no-webui"], {})


def measure_embeddings(model: Path) -> None:
    for name in [server.name for server in embedding_servers(model, 0)]:
        port = free_port()
        server = next(one for one in embedding_servers(model, port) if one.name == name)
        with running(server, port, path="embeddings"):
            asyncio.run(embed(port, 4, 1))  # warm
            print(
                f"{name:20} {EMBEDDING_CLIENTS} clients: {asyncio.run(embed(port, EMBEDDING_CLIENTS, SECONDS)):6.0f} texts/s"
            )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = write_synthetic(Path(folder) / "bench.gguf", name="bench", seed=1, dim=768, layers=10)
        print(f"{model.stat().st_size / 2**20:.0f} MB, {THREADS} threads, answers of {ANSWER_TOKENS} tokens")
        for name in [server.name for server in servers(model, 0)]:
            port = free_port()
            server = next(one for one in servers(model, port) if one.name == name)
            with running(server, port):
                asyncio.run(ask(port, 1, 2))  # warm
                for clients in (1, SLOTS):
                    figures = asyncio.run(ask(port, clients, SECONDS))
                    print(
                        f"{name:20} {clients} clients: {figures.tokens_per_s:6.0f} tokens/s, first token p50 "
                        f"{figures.first_p50_s * 1000:6.0f} ms, p95 {figures.first_p95_s * 1000:6.0f} ms",
                        flush=True,
                    )
    minilm = Path(os.environ.get("CHASQUI_HOME", ROOT / "var")) / "models" / "all-MiniLM-L6-v2.gguf"
    if minilm.exists():
        print(f"embeddings by {minilm.name}")
        measure_embeddings(minilm)


if __name__ == "__main__":
    main()
