"""Models in and out of memory while clients wait: real workers."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.errors import BackendBusy, BackendUnavailable, InvalidRequest, ModelFileUnusable
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fleet import Fleet
from backends.llamacpp.ram_disk import RamDisk
from backends.llamacpp.synthetic import write_synthetic
from backends.llamacpp.totals import Totals
from backends.settings import FleetSettings
from tests.backends.llamacpp.local import chat, settings, texts
from tests.backends.llamacpp.test_api import ON_AND_ON

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def fleet_of(path: Path, *names: str, limits: dict[str, Any], **fields: Any) -> AsyncIterator[list[LocalBackend]]:
    fleet = Fleet(ram_disk=fields.pop("disk", None))
    fleet.limit(FleetSettings(**limits))
    pinned = fields.pop("pinned_one", None)
    backends = [
        LocalBackend(fleet.add(settings(name=name, pinned=name == pinned, **fields), path), serves="chat")
        for name in names
    ]
    try:
        yield backends
    finally:
        await fleet.aclose()


async def test_the_longest_unused_leaves_when_there_is_room_for_two(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", "c", limits={"max_loaded": 2}) as (a, b, c):
        for backend in (a, b, a, c):
            await texts(backend, chat())
        assert [one.status() for one in (a, b, c)] == ["ready", "asleep", "ready"]
        assert await texts(b, chat()) == await texts(a, chat())


async def test_a_model_at_work_ends_its_work_before_it_leaves(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", limits={"max_loaded": 1}) as (a, b):
        (alone,) = await texts(a, chat(max_tokens=100, ignore_eos=True))
        stream = a.stream(chat(max_tokens=100, ignore_eos=True, stream=True))
        said = (await anext(stream)).raw
        other = asyncio.create_task(texts(b, chat()))
        while a.status() != "stopping":
            await asyncio.wait([other], timeout=0)
        latecomer = asyncio.create_task(texts(a, chat()))
        said += b"".join([event.raw async for event in stream])
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith(b"data: {")]
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == alone
        assert await other == await latecomer


async def test_a_client_who_does_not_read_holds_no_place_in_memory(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", limits={"max_loaded": 1}) as (a, b):
        stream = a.stream(chat(max_tokens=100, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20))
        first = await anext(stream)
        assert await asyncio.wait_for(texts(b, chat()), 20)
        rest = b"".join([event.raw async for event in stream])
        assert (first.raw + rest).count(b'"bytes"') == 2100, "and it still gets everything"


async def test_who_waits_for_room_too_long_is_told_when_to_come_back(synthetic_gguf: Path) -> None:
    options: Any = {"context_tokens": 200_000, "max_wait_s": 0.2}
    async with fleet_of(synthetic_gguf, "a", "b", limits={"max_loaded": 1}, **options) as (a, b):
        stream = a.stream(chat(max_tokens=150_000, logit_bias=ON_AND_ON, stream=True))
        await anext(stream)
        with pytest.raises(BackendBusy):
            await texts(b, chat())
        with pytest.raises(BackendBusy):
            await texts(a, chat())
        await stream.aclose()
        while b.status() != "ready":
            await asyncio.sleep(0.01)
        assert await texts(b, chat())


async def test_who_needs_nobody_to_leave_does_not_wait_for_those_who_do(synthetic_gguf: Path) -> None:
    fleet = Fleet()
    a, b, small = [
        LocalBackend(fleet.add(settings(name=name, context_tokens=200_000), synthetic_gguf), serves="chat")
        for name in ("a", "b", "small")
    ]
    try:
        stream = a.stream(chat(max_tokens=150_000, logit_bias=ON_AND_ON, stream=True))
        await anext(stream)
        fleet.limit(FleetSettings(max_loaded=1))
        waiting = asyncio.create_task(texts(b, chat()))
        while a.status() != "stopping":
            await asyncio.wait([waiting], timeout=0)
        fleet.limit(FleetSettings(max_loaded=2))
        assert await asyncio.wait_for(texts(small, chat()), 20)
        await stream.aclose()
        await waiting
    finally:
        await fleet.aclose()


async def test_many_clients_of_many_models_are_all_answered_with_room_for_one(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", "c", limits={"max_loaded": 1}) as backends:
        answers = await asyncio.gather(*(texts(backend, chat()) for backend in backends * 4))
        assert len(answers) == 12
        assert all(answer == answers[0] for answer in answers)
        assert sum(backend.status() == "ready" for backend in backends) == 1


async def test_what_never_fits_says_so_with_the_numbers(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", limits={"max_loaded": 1}, pinned_one="a") as (a, b):
        await texts(a, chat())
        with pytest.raises(BackendUnavailable, match=r"max_loaded is 1, and 1 pinned"):
            await texts(b, chat())
        assert await texts(a, chat())
    async with fleet_of(synthetic_gguf, "a", limits={"max_memory_mb": 1}) as (a,):
        with pytest.raises(BackendUnavailable, match=r"max_memory_mb is 1 MB"):
            await texts(a, chat())


async def test_a_pinned_model_is_not_stopped_for_idleness(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", limits={}, pinned_one="a", idle_stop_s=1e-9) as (a, b):
        for backend in (a, b):
            await texts(backend, chat())
            await backend._member.stop_if_idle()
        assert [one.status() for one in (a, b)] == ["ready", "asleep"]


async def test_an_unloaded_model_comes_back_with_the_next_request(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", limits={}) as (a,):
        await a.load()
        first = a.pid
        told = await a.describe()
        assert (told["status"], told["slots"], told["pid"]) == ("ready", 4, first)
        assert told["memory_bytes"] > 10_000_000
        await texts(a, chat(max_tokens=5, ignore_eos=True))
        await a.unload()
        assert (a.status(), a.pid) == ("asleep", None)
        assert a._member.totals.all()["generated_tokens"] == 5, "counted to the end"
        assert await texts(a, chat())
        assert a.pid not in (None, first)


async def test_a_swapped_model_answers_those_who_waited(synthetic_gguf: Path, tmp_path: Path) -> None:
    other = write_synthetic(tmp_path / "other.gguf", seed=9)
    async with fleet_of(synthetic_gguf, "a", limits={}) as (a,):
        before = await texts(a, chat())
        swap = asyncio.create_task(a.swap(str(other)))
        while not a._member._gate.is_paused:
            await asyncio.wait([swap], timeout=0)
        waiting = asyncio.create_task(texts(a, chat()))
        await swap
        after = await waiting
        assert after != before
        assert (await a.describe())["file"] == "other.gguf"
        broken = tmp_path / "broken.gguf"
        broken.write_bytes(other.read_bytes()[:5000])
        with pytest.raises(BackendUnavailable):
            await a.swap(str(broken))
        assert await texts(a, chat()) == after, "the old one is back"


async def test_swaps_at_the_same_time_come_one_after_the_other(synthetic_gguf: Path, tmp_path: Path) -> None:
    files = [write_synthetic(tmp_path / f"{seed}.gguf", seed=seed) for seed in (31, 32)]
    async with fleet_of(synthetic_gguf, "a", limits={}) as (a,):
        said = {}
        for file in files:
            await a.swap(str(file))
            said[file.name] = await texts(a, chat())
        await asyncio.gather(*(a.swap(str(file)) for file in files))
        told = await a.describe()
        assert await texts(a, chat()) == said[told["file"]], "what it says that it is"
    assert len({str(text) for text in said.values()}) == 2


async def test_a_swapped_model_is_not_stopped_at_once_for_what_was_idle_before(
    synthetic_gguf: Path, tmp_path: Path
) -> None:
    other = write_synthetic(tmp_path / "other.gguf", seed=9)
    async with fleet_of(synthetic_gguf, "a", limits={}, idle_stop_s=100) as (a,):
        await texts(a, chat())
        a._member._last_use_s -= 1000
        await a.swap(str(other))
        await a._member.stop_if_idle()
        assert a.status() == "ready"


async def test_a_swap_that_nobody_waits_for_any_more_leaves_the_old_model(synthetic_gguf: Path, tmp_path: Path) -> None:
    other = write_synthetic(tmp_path / "other.gguf", seed=9)
    async with fleet_of(synthetic_gguf, "a", limits={}) as (a,):
        before = await texts(a, chat())
        swap = asyncio.create_task(a.swap(str(other)))
        while a._member.path != other:
            await asyncio.wait([swap], timeout=0)
        swap.cancel()
        await asyncio.gather(swap, return_exceptions=True)
        assert a._member.path == synthetic_gguf
        assert await texts(a, chat()) == before


async def test_a_dead_worker_takes_no_place_and_nobody_waits_for_it(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", "b", "c", limits={"max_loaded": 2}) as (a, b, c):
        await texts(a, chat())
        await texts(b, chat())
        assert b.pid is not None
        os.kill(b.pid, signal.SIGKILL)
        while b._member.has_room:
            await asyncio.sleep(0.01)
        await texts(c, chat())
        assert [one.status() for one in (a, b, c)] == ["ready", "asleep", "ready"]
        for backend in (a, c):
            assert backend.pid is not None
            os.kill(backend.pid, signal.SIGKILL)
        answers = await asyncio.wait_for(asyncio.gather(*(texts(one, chat()) for one in (a, b, c) * 3)), 40)
        assert len({str(answer) for answer in answers}) == 1


async def test_a_worker_that_cannot_be_spawned_is_unavailable(
    synthetic_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def spawn(*_: Any, **__: Any) -> Any:
        raise OSError(11, "Resource temporarily unavailable")

    async with fleet_of(synthetic_gguf, "a", limits={}) as (a,):
        monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
        with pytest.raises(BackendUnavailable, match="cannot be started: .*temporarily unavailable"):
            await texts(a, chat())


async def test_a_stop_that_nobody_waits_for_any_more_ends_the_worker_all_the_same(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", limits={}) as (a,):
        await texts(a, chat())
        pid = a.pid
        assert pid is not None
        stop = asyncio.create_task(a.unload())
        while a._member._current is not None:
            await asyncio.wait([stop], timeout=0)
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_a_model_that_is_not_there_cannot_be_swapped_in(synthetic_gguf: Path) -> None:
    def find(name: str) -> Path:
        raise ModelFileUnusable(f"there is no {name}")

    fleet = Fleet()
    backend = LocalBackend(fleet.add(settings(), synthetic_gguf), serves="chat", find=find)
    with pytest.raises(InvalidRequest, match="there is no x.gguf"):
        await backend.swap("x.gguf")
    await fleet.aclose()


async def test_unloading_gives_up_when_somebody_goes_on_and_on(synthetic_gguf: Path) -> None:
    async with fleet_of(synthetic_gguf, "a", limits={}, context_tokens=200_000) as (a,):
        stream = a.stream(chat(stream=True, logit_bias=ON_AND_ON, max_tokens=150_000))
        await anext(stream)
        with pytest.raises(BackendUnavailable, match="still at work on 1 requests"):
            await a._member.unload(0.01)
        assert (await anext(stream)).raw, "it goes on"
        await stream.aclose()


async def test_a_staged_file_is_read_from_memory_and_can_be_cleared(synthetic_gguf: Path, tmp_path: Path) -> None:
    disk = RamDisk(tmp_path)
    async with fleet_of(synthetic_gguf, "a", limits={}, ram_disk=True, disk=disk) as (a,):
        assert await texts(a, chat())
        (staged,) = disk.files()
        assert staged.bytes == synthetic_gguf.stat().st_size
        assert staged.path.parent.stat().st_mode & 0o077 == 0
        fleet: Any = a._member._fleet
        assert await fleet.clear_ram_disk() == [], "a worker has it open"
        await a.unload()
        assert await fleet.clear_ram_disk() == [staged]
        assert disk.files() == []
        assert await texts(a, chat()), "staged again"


async def test_a_file_that_is_being_staged_is_not_cleared(synthetic_gguf: Path, tmp_path: Path) -> None:
    disk = RamDisk(tmp_path)
    needed: set[Path] = set()

    async def stage() -> None:
        needed.add(await disk.stage(synthetic_gguf))

    half = tmp_path / disk._folder.name / "killed.123.part"
    half.parent.mkdir(mode=0o700)
    half.write_bytes(b"half")
    os.utime(half, (0, 0))
    staging = asyncio.create_task(stage())
    await asyncio.sleep(0)
    assert await disk.clear(lambda: needed) == []
    await staging
    assert [staged.path for staged in disk.files()] == list(needed)
    assert not half.exists(), "what a killed gateway has left half done goes"


async def test_a_file_that_does_not_fit_on_the_ram_disk_says_by_how_much(
    synthetic_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = os.statvfs_result((4096, 4096, 100, 50, 50, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    async with fleet_of(synthetic_gguf, "a", limits={}, ram_disk=True, disk=RamDisk(tmp_path)) as (a,):
        with pytest.raises(BackendUnavailable, match=r"does not fit on the RAM disk: it has \d+ MB, .* 0 MB free"):
            await texts(a, chat())


async def test_no_ram_disk_says_so(synthetic_gguf: Path, tmp_path: Path) -> None:
    disk = RamDisk(tmp_path / "nowhere")
    async with fleet_of(synthetic_gguf, "a", limits={}, ram_disk=True, disk=disk) as (a,):
        with pytest.raises(BackendUnavailable, match="cannot stage"):
            await texts(a, chat())


def test_counters_go_on_where_a_process_ended() -> None:
    totals = Totals()
    totals.saw({"tokens": 5})
    totals.saw({"tokens": 7})
    totals.ended()
    assert totals.all() == {"tokens": 7}
    totals.saw({"tokens": 1, "steps": 2})
    assert totals.all() == {"tokens": 8, "steps": 2}
