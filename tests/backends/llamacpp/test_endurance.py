"""A worker started, left and killed many times leaves nothing behind; a batch says what each would say alone."""

import asyncio
import gc
import os
import resource
import signal
from contextlib import aclosing
from pathlib import Path

import gguf
import numpy as np
import pytest

from backends.errors import BackendError, BackendUnavailable
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fleet import Fleet
from tests.backends.llamacpp.local import chat, legacy, running, settings, texts
from tests.backends.llamacpp.test_api import ON_AND_ON
from tests.conftest import SHARED

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("CHASQUI_KILL_ROUNDS", "10"))
"""200 are the measure; the suite does a few."""

WARM_UP = 5

STORIES = SHARED / "models" / "stories260K.gguf"
BEGINNINGS = (
    "Once upon a time", "One day a dog", "The little girl", "Tom had a red", "It was a sunny", "A bird sat", "Mom said",
    "In the park there was",
)  # fmt: skip


@pytest.mark.skipif(not STORIES.is_file(), reason="stories260K.gguf is not there")
async def test_eight_stories_side_by_side_are_those_that_each_would_be_alone() -> None:
    """Greedy; the numbers differ a little with the batch, so that a tie may fall the other way: one of eight may differ."""
    async with running(STORIES, context_tokens=2048, slots=8) as backend:
        asked = [legacy(beginning, max_tokens=60) for beginning in BEGINNINGS]
        alone = [await texts(backend, one) for one in asked]
        await backend.unload()  # nothing of it is in the cells any more
        together = await asyncio.gather(*(texts(backend, one) for one in asked))
    assert len({text for (text,) in alone}) == 8
    assert sum(one == other for one, other in zip(alone, together, strict=True)) >= 7


async def one_round(backend: LocalBackend, number: int) -> None:
    """Eight streams; some clients leave, then the worker is killed, and the others are told."""

    async def client(place: int) -> str:
        asked = chat(f"client {place}", stream=True, max_tokens=20_000, logit_bias=ON_AND_ON)
        async with aclosing(backend.stream(asked)) as events:
            await anext(events)
            begun.release()
            if place % 3 == number % 3 or backend.pid != victim:
                return "left"  # in the second case, the worker that took the killed one's place has begun anew
            try:
                async for event in events:
                    assert not event.last
            except BackendError:
                return "told"
        return "ended"

    await texts(backend, chat())
    victim, begun = backend.pid, asyncio.Semaphore(0)
    assert victim is not None
    clients = [asyncio.create_task(client(place)) for place in range(8)]
    for _ in range(1 + number * 5 % 8):
        await begun.acquire()
    os.kill(victim, signal.SIGKILL)
    ends = await asyncio.gather(*clients, return_exceptions=True)
    assert "ended" not in ends
    assert all(isinstance(end, BackendError) or end in ("left", "told") for end in ends), ends
    assert await texts(backend, chat()), "and the next request is fine"


async def test_many_starts_and_kills_leave_no_process_socket_or_memory_behind(synthetic_gguf: Path) -> None:
    fleet = Fleet()
    backend = LocalBackend(fleet.add(settings(context_tokens=200_000, slots=8), synthetic_gguf), serves="chat")
    try:
        for number in range(WARM_UP):
            await one_round(backend, number)
        before = footprint()
        for number in range(ROUNDS):
            await one_round(backend, number)
        after = footprint()
        folder = fleet.sockets.new().parent
        assert len(list(folder.iterdir())) == 1, "the socket of the one that lives"
    finally:
        await fleet.aclose()
    assert children() == set()
    assert after[0] <= before[0] + 1, "descriptors"
    assert after[1] <= before[1] + 1, "tasks"
    grown_mb = (after[2] - before[2]) / 2**20
    assert grown_mb <= 2 + ROUNDS * 0.02, f"memory grew by {grown_mb:.1f} MB"


def footprint() -> tuple[int, int, int]:
    """Descriptors, tasks, resident bytes."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return descriptors, len(asyncio.all_tasks()), resident


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_a_file_whose_weights_are_of_a_kind_that_kills_llama_cpp_is_a_start_up_error(
    synthetic_gguf: Path, tmp_path: Path
) -> None:
    """F64 loads, and the first decode ends the process: the worker decodes once before it is ready."""
    path = with_doubles(synthetic_gguf, tmp_path / "doubles.gguf")
    async with running(path) as backend:
        with pytest.raises(BackendUnavailable, match="ended at start") as caught:
            await backend.complete(chat())
        assert backend.status() == "failed"
        assert "exit" in str(caught.value) or "llama" in str(caught.value)


def with_doubles(source: Path, target: Path) -> Path:
    """The same model with one of its tensors in float64."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = np.asarray(tensor.data)
        writer.add_tensor(tensor.name, values.astype(np.float64) if tensor.name == "blk.0.ffn_up.weight" else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
