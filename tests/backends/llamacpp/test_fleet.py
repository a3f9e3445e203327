"""Worker processes: started, killed, stopped, started again."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from backends.errors import BackendUnavailable, UpstreamBroken
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.fleet import Fleet
from backends.llamacpp.member import BACKOFF_S, Member
from backends.llamacpp.sockets import Sockets, _locked, _remove_leftovers
from backends.llamacpp.worker_command import KEY_ENV, WorkerOptions, default_threads, worker_command
from tests.backends.llamacpp.local import chat, running, settings, texts
from tests.backends.llamacpp.test_api import ON_AND_ON

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def member_of(path: Path, clock: Clock | None = None) -> AsyncIterator[tuple[Member, LocalBackend]]:
    fleet = Fleet()
    member = Member(settings(), path, fleet=fleet, clock=clock or Clock())
    try:
        yield member, LocalBackend(member, serves="chat")
    finally:
        await member.aclose()
        await fleet.aclose()


# Starting


async def test_a_worker_is_started_at_the_first_use_and_stays(synthetic_gguf: Path) -> None:
    async with member_of(synthetic_gguf) as (member, backend):
        assert (backend.status(), member.pid) == ("asleep", None)
        call = asyncio.create_task(texts(backend, chat()))
        while backend.status() == "asleep":
            await asyncio.wait([call], timeout=0)
        assert backend.status() == "starting"
        await call
        assert backend.status() == "ready"
        pid = member.pid
        await texts(backend, chat())
        assert member.pid == pid is not None


async def test_everybody_who_comes_at_the_start_waits_for_the_same_worker(synthetic_gguf: Path) -> None:
    """Also when the one who came first leaves."""
    fleet = Fleet()
    sockets = fleet.sockets
    member = fleet.add(settings(), synthetic_gguf)
    backend = LocalBackend(member, serves="chat")
    callers = [asyncio.create_task(texts(backend, chat())) for _ in range(4)]
    while backend.status() == "asleep":
        await asyncio.wait(callers, timeout=0)
    callers[0].cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    await member.aclose()
    assert (isinstance(results[0], asyncio.CancelledError), results[1] == results[2] == results[3]) == (True, True)
    assert sockets.new().name == "2.sock"  # one was taken
    sockets.remove()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no model", "is not a GGUF file"),
        (b"", "is not a GGUF file"),
        (None, "cannot read the model file"),
        ("half", "llama.cpp cannot load"),
        ("head", "llama.cpp cannot load"),
    ],
)
async def test_a_file_that_cannot_be_loaded_is_unavailable_with_words(
    tmp_path: Path, synthetic_gguf: Path, content: bytes | str | None, words: str
) -> None:
    whole = synthetic_gguf.read_bytes()
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes({"half": whole[: len(whole) // 2], "head": whole[:64]}.get(str(content), content))  # type: ignore[arg-type]
    async with member_of(path) as (member, backend):
        with pytest.raises(BackendUnavailable, match=words) as caught:
            await backend.complete(chat())
        assert (path.name in str(caught.value), backend.status(), member.pid) == (True, "failed", None)


async def test_after_a_failed_start_it_answers_at_once_until_it_is_time_to_try_again(
    tmp_path: Path, synthetic_gguf: Path
) -> None:
    path, clock = tmp_path / "m.gguf", Clock()
    path.write_bytes(b"no")
    async with member_of(path, clock) as (_, backend):
        for delay_s in BACKOFF_S[1:3]:
            with pytest.raises(BackendUnavailable) as first:
                await backend.complete(chat())
            assert first.value.retry_after_s is None
            clock.now_s += delay_s / 2
            with pytest.raises(BackendUnavailable) as second:
                await backend.complete(chat())
            assert (str(second.value), second.value.retry_after_s) == (str(first.value), delay_s / 2)
            clock.now_s += delay_s / 2
        path.write_bytes(synthetic_gguf.read_bytes())
        assert await texts(backend, chat())
        assert backend.status() == "ready"
        path.write_bytes(b"no")
        await backend._member._stop_current()
        with pytest.raises(BackendUnavailable):
            await backend.complete(chat())
        clock.now_s += BACKOFF_S[1]  # a start that worked took the earlier failures back
        path.write_bytes(synthetic_gguf.read_bytes())
        assert await texts(backend, chat())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 10, 100])
async def test_closing_during_the_start_ends_the_worker_and_refuses_everybody(synthetic_gguf: Path, turns: int) -> None:
    async with member_of(synthetic_gguf) as (member, backend):
        before = children()
        caller = asyncio.create_task(backend.complete(chat()))
        while backend.status() == "asleep":
            await asyncio.wait([caller], timeout=0)
        for _ in range(turns):  # of the event loop, to be cancelled in every part of the start
            await asyncio.sleep(0)
        await member.aclose()
        assert children() == before
        with pytest.raises(asyncio.CancelledError):
            await caller
        with pytest.raises(BackendUnavailable, match="the gateway is stopping"):
            await backend.complete(chat())


def children() -> set[str]:
    """The process ids of this process's children, dead ones that nobody has collected among them."""
    return {pid for thread in Path("/proc/self/task").glob("*/children") for pid in thread.read_text().split()}


# Dying


async def kill_in_a_stream(backend: LocalBackend) -> None:
    """The stream of a worker that is killed breaks, and never looks complete."""
    asked = chat(stream=True, max_tokens=150_000, logit_bias=ON_AND_ON)
    async with aclosing(backend.stream(asked)) as events:
        await anext(events)
        pid = backend._member.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UpstreamBroken):
            async for event in events:
                assert not event.last


async def test_a_worker_killed_in_a_stream_breaks_it_and_is_started_again(synthetic_gguf: Path) -> None:
    restarted: list[str] = []
    fleet = Fleet(on_restart=restarted.append)
    member = fleet.add(settings(context_tokens=200_000), synthetic_gguf)
    backend = LocalBackend(member, serves="chat")
    try:
        await texts(backend, chat())
        first, (watcher,) = member.pid, member._watchers
        await kill_in_a_stream(backend)
        await watcher
        assert await texts(backend, chat())
        assert (member.pid not in (None, first), restarted) == (True, ["local"])
    finally:
        await fleet.aclose()


async def test_the_very_next_call_after_a_kill_works_and_the_restart_is_told(synthetic_gguf: Path) -> None:
    """A matter of chance, so several times."""
    restarted: list[str] = []
    fleet = Fleet(on_restart=restarted.append)
    backend = LocalBackend(fleet.add(settings(context_tokens=200_000), synthetic_gguf), serves="chat")
    try:
        for number in range(5):
            await kill_in_a_stream(backend)
            assert await texts(backend, chat())
            assert restarted == ["local"] * (number + 1)
    finally:
        await fleet.aclose()


async def test_a_worker_that_dies_unused_is_seen_without_a_call(
    synthetic_gguf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with member_of(synthetic_gguf) as (member, backend):
        await texts(backend, chat())
        assert member.pid is not None
        (watcher,) = member._watchers
        os.kill(member.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            await watcher
        assert (member.pid, backend.status()) == (None, "asleep")
        assert "worker 'local' died (exit -9)" in caplog.text
        assert await texts(backend, chat())


async def test_a_worker_ends_when_its_parents_pipe_closes(synthetic_gguf: Path, tmp_path: Path) -> None:
    socket = tmp_path / "w.sock"
    command = worker_command(WorkerOptions.of(settings(), synthetic_gguf, socket))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ | {KEY_ENV: "k"}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert b'"ready":true' in await process.stdout.readline()
        mode = stat.S_IMODE(socket.stat().st_mode)
        process.stdin.close()
        assert await process.wait() == 0
        await process.communicate()
    assert oct(mode) == "0o600"


async def test_a_worker_without_a_key_does_not_start(synthetic_gguf: Path, tmp_path: Path) -> None:
    command = worker_command(WorkerOptions.of(settings(), synthetic_gguf, tmp_path / "w.sock"))
    environment = {name: value for name, value in os.environ.items() if name != KEY_ENV}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"a worker needs a key: put one into the environment variable CHASQUI_WORKER_KEY" in err


# Sleeping


async def test_an_idle_worker_is_stopped_and_one_in_use_is_not(synthetic_gguf: Path) -> None:
    ticks: asyncio.Queue[None] = asyncio.Queue()
    looked = asyncio.Semaphore(0)

    async def tick(_: float) -> None:
        looked.release()
        await ticks.get()

    fleet = Fleet(sleep=tick)
    member = fleet.add(settings(idle_stop_s=1e-9, context_tokens=200_000), synthetic_gguf)
    backend = LocalBackend(member, serves="chat")
    fleet.start()
    await looked.acquire()
    async with asyncio.timeout(30):
        async with aclosing(backend.stream(chat(stream=True, max_tokens=150_000, logit_bias=ON_AND_ON))) as events:
            await anext(events)
            ticks.put_nowait(None)
            await looked.acquire()
            assert backend.status() == "ready"
        ticks.put_nowait(None)
        await looked.acquire()
        assert (backend.status(), member.pid) == ("asleep", None)
        assert await texts(backend, chat())
        await fleet.aclose()


async def test_a_worker_used_lately_is_not_stopped(synthetic_gguf: Path) -> None:
    clock = Clock()
    async with member_of(synthetic_gguf, clock) as (member, backend):
        await texts(backend, chat())
        clock.now_s += 599
        await member.stop_if_idle()
        assert backend.status() == "ready"
        clock.now_s += 1
        await member.stop_if_idle()
        assert backend.status() == "asleep"


# Sockets, commands, files


async def test_sockets_lie_in_a_private_folder_that_goes_away(synthetic_gguf: Path) -> None:
    fleet = Fleet()
    sockets = fleet.sockets
    member = fleet.add(settings(), synthetic_gguf)
    await texts(LocalBackend(member, serves="chat"), chat())
    folder = sockets.new().parent
    assert oct(stat.S_IMODE(folder.stat().st_mode)) == "0o700"
    assert [(path.name, oct(stat.S_IMODE(path.stat().st_mode))) for path in folder.iterdir()] == [("1.sock", "0o600")]
    await member.aclose()
    assert list(folder.iterdir()) == []
    sockets.remove()
    assert not folder.exists()


@pytest.mark.parametrize("length", ["short", "long"])
def test_sockets_use_the_runtime_folder_unless_its_name_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    inside = Sockets()
    runtime = inside.new().parent if length == "short" else tmp_path / ("x" * 80)
    runtime.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    sockets = Sockets()
    path = sockets.new()
    assert (path.is_relative_to(runtime), len(str(path)) < 107, path.parent.is_dir()) == (length == "short", True, True)
    sockets.remove()
    inside.remove()


def test_the_command_carries_the_settings_and_never_the_key() -> None:
    options = WorkerOptions.of(
        settings(threads="auto", gpu_layers=-1, serves="embeddings"), Path("/m/a b.gguf"), Path("/s/1.sock")
    )
    assert worker_command(options) == [
        sys.executable,
        "-m",
        "backends.llamacpp.worker",
        "--model=/m/a b.gguf",
        "--name=local",
        "--serves=embeddings",
        "--context-tokens=256",
        "--slots=4",
        "--threads=0",
        "--gpu-layers=-1",
        "--split-mode=layer",
        "--flash-attention=auto",
        "--cache-type-k=f16",
        "--cache-type-v=f16",
        "--batch-tokens=128",
        "--socket=/s/1.sock",
        "--with-parent",
    ]


async def test_identity_is_the_files_digest_and_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    async with running(path) as backend:
        first = await backend.identity()
        assert first == await backend.identity()
        assert first.startswith("gguf:")
        path.write_bytes(b"three")
        assert await backend.identity() != first
        assert backend.local


def test_folders_of_killed_gateways_go_and_those_of_living_and_young_ones_stay(tmp_path: Path) -> None:
    """The lock decides, not a process id: containers that share a folder do not share those."""
    names = ["dead", "living", "young"]
    folders = {name: tmp_path / f"chasqui-{name}" for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "1.sock").write_text("")
        if name != "young":
            os.utime(folder, (0, 0))
    (tmp_path / "chasqui-link").symlink_to(tmp_path)
    lock = _locked(folders["living"])
    _remove_leftovers(tmp_path)
    os.close(lock)
    assert [name for name in names if folders[name].exists()] == ["living", "young"]


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 7)])
def test_one_core_stays_free_for_everything_else(cores: int, threads: int) -> None:
    assert default_threads(cores) == threads
