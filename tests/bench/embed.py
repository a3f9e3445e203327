"""`make bench-embed`: what the embedding cache is worth. A real gateway with MiniLM, on one core; the client on another.

Misses and hits by one client and by 32, a thousand cached texts in one call, and a cache of a million entries. llama-server takes part
in the misses where its binary is on PATH (or in LLAMA_SERVER).
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.database import CACHE_FILE, cache_database
from retrieval.embedding_cache import EmbeddingCache
from retrieval.vector_memory import CachedVector, VectorMemory
from retrieval.vector_store import Entry, Limits, VectorStore
from tests.bench.engine import EMBEDDING_CLIENTS, embed, embedding_servers, free_port
from tests.bench.engine import running as server_running
from tests.conftest import ROOT
from tests.processes import Serving
from tests.running import ADMIN_KEY

SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
ENTRIES = int(os.environ.get("BENCH_ENTRIES", "1000000"))
MODEL = "text-embedding-3-small"
TEXT = "The runner carries a message along the road from one station to the next, and then another one takes over."
HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}


def say(words: str) -> None:
    print(words, flush=True)


async def asked(session: aiohttp.ClientSession, url: str, texts: Any) -> float:
    """Seconds."""
    began = time.perf_counter()
    async with session.post(
        f"{url}/v1/embeddings", json={"model": MODEL, "input": texts, "encoding_format": "base64"}
    ) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()
    return time.perf_counter() - began


async def loaded(url: str, clients: int, text: Callable[[int, int], str]) -> tuple[float, list[float]]:
    """Requests a second, and how long each took."""
    times: list[float] = []
    ends = time.perf_counter() + SECONDS

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        count = 0
        while time.perf_counter() < ends:
            count += 1
            times.append(await asked(session, url, text(number, count)))

    async with aiohttp.ClientSession(headers=HEADERS, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, number) for number in range(clients)))
    return len(times) / SECONDS, times


async def thousand(url: str) -> list[float]:
    texts = [f"{number} {TEXT}" for number in range(1000)]
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        await asked(session, url, texts)
        return [await asked(session, url, texts) for _ in range(9)]


async def million(home: Path) -> None:
    """A store of many entries, and a memory tier of a tenth of it."""
    database = create_async_engine("sqlite+aiosqlite://")
    engine = cache_database(database, home)
    vector = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    store = VectorStore(engine, Limits(ENTRIES * 4000), clock=time.time)
    cache = EmbeddingCache(store, VectorMemory(max_vectors=10**7, max_bytes=ENTRIES * 200))
    await cache.open()
    began = time.perf_counter()
    for start in range(0, ENTRIES, 5000):
        numbers = range(start, min(start + 5000, ENTRIES))
        cache.put(Entry(number.to_bytes(32, "big"), "m", CachedVector(vector + number, 7)) for number in numbers)
        assert await cache.flush()
    filled_s = time.perf_counter() - began
    size = sum(path.stat().st_size for path in home.glob(f"{CACHE_FILE}*"))
    picks = [int(number).to_bytes(32, "big") for number in np.random.default_rng(2).integers(0, ENTRIES, 2000)]
    times = []
    for key in picks:
        began = time.perf_counter()
        assert await cache.get([key], "m")
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    found = await cache.get(picks[:1000], "m")
    together_s = time.perf_counter() - began
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    say(
        f"{ENTRIES:,} entries: written at {ENTRIES / filled_s:,.0f}/s, {size / 2**20:,.0f} MB on disk, "
        f"{len(cache.memory):,} of them in {cache.memory.bytes / 2**20:,.0f} MB of memory (process: {pages * 4096 / 2**20:,.0f} MB); "
        f"a random one p50 {statistics.median(times) * 1e3:.2f} ms, p99 {sorted(times)[-20] * 1e3:.2f} ms; "
        f"{len(found)} at once {together_s * 1e3:.0f} ms"
    )
    await engine.dispose()
    await database.dispose()


def gateway_config(models: Path) -> dict[str, Any]:
    minilm = str(models / "all-MiniLM-L6-v2.gguf")
    return {
        "embedding_cache": {"memory_mb": 256},
        "backends": [{"name": "minilm", "engine": "llama_cpp", "model": minilm, "serves": "embeddings", "threads": 2}],
        "models": [{"name": MODEL, "route": ["minilm"]}],
        "roles": [{"name": "default"}],
    }


def main() -> None:
    models = ROOT / "var" / "models"
    with tempfile.TemporaryDirectory() as folder:
        gateway = Serving(Path(folder), gateway_config(models), {})
        gateway.start()
        try:
            asyncio.run(measure(gateway.url))
        finally:
            gateway.stop()
    port = free_port()
    for server in list(embedding_servers(models / "all-MiniLM-L6-v2.gguf", port)):
        with server_running(server, port, path="embeddings"):
            asyncio.run(embed(port, 4, 1))
            rate = asyncio.run(embed(port, EMBEDDING_CLIENTS, SECONDS))
            say(f"{server.name:18} {EMBEDDING_CLIENTS} clients, all misses: {rate:8,.0f} texts/s")
    with tempfile.TemporaryDirectory(dir=ROOT / "var") as folder:
        asyncio.run(million(Path(folder)))


async def compared(url: str, name: str, text: str, clients: int) -> None:
    miss_rate, misses = await loaded(url, clients, lambda number, count: f"{clients} {number} {count} {text}")
    hit_rate, hits = await loaded(url, clients, lambda number, count: text)
    say(
        f"the gateway        {clients} clients, {name}: misses {miss_rate:8,.0f} texts/s, "
        f"p50 {statistics.median(misses) * 1e3:6.2f} ms; hits {hit_rate:8,.0f} texts/s, "
        f"p50 {statistics.median(hits) * 1e3:6.2f} ms; {hit_rate / miss_rate:.0f} x"
    )


async def measure(url: str) -> None:
    await loaded(url, 1, lambda number, count: f"warm {number} {count}")
    for name, text in (("a sentence", TEXT), ("a passage of 200 words", " ".join([TEXT] * 10))):
        for clients in (1, EMBEDDING_CLIENTS):
            await compared(url, name, text, clients)
    times = await thousand(url)
    say(
        f"the gateway        1,000 cached texts in one call: p50 {statistics.median(times) * 1e3:.0f} ms, worst {max(times) * 1e3:.0f}"
    )


if __name__ == "__main__":
    main()
