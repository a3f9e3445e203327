"""Worker processes: started on first use, watched, stopped when idle, started again after a crash.

States of a member: asleep -> starting -> ready -> asleep (idle, or the process ended). `_wake` is the only way from
asleep to ready and is shared by everybody who waits; a start that fails leaves the member asleep and, for
`BACKOFF_S[n]` after the n-th failure in a row, answers at once with the same words instead of trying again.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from backends.errors import BackendUnavailable
from backends.keyring import KeyRing
from backends.llamacpp.worker_command import KEY_ENV, WorkerOptions, worker_command
from backends.relay import Relay
from backends.settings import LlamaCppSettings, Timeouts
from backends.transport_http1 import Http1Transport

log = logging.getLogger("chasqui.fleet")

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
DEATH_REPORT_S = 0.5
LINE_BYTES = 2**20
LEFTOVER_S = 60.0
BACKOFF_S = (0.0, 1.0, 5.0, 15.0, 60.0)
LOCAL_TIMEOUTS = Timeouts(connect_s=5, first_byte_s=3600, idle_s=600, total_s=3600)
"""A local model may chew on a long prompt for minutes; its death is seen at once, because the socket closes."""


class Sockets:
    """A private directory (0700) with short paths: a Unix socket's name may have 107 bytes."""

    def __init__(self) -> None:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        parent = runtime if runtime and os.access(runtime, os.W_OK) and len(runtime) < 60 else None
        _remove_leftovers(Path(parent or tempfile.gettempdir()))
        self._directory = Path(tempfile.mkdtemp(prefix="chasqui-", dir=parent))
        self._lock: int | None = _locked(self._directory)
        self._count = 0

    def new(self) -> Path:
        self._count += 1
        return self._directory / f"{self._count}.sock"

    def remove(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_leftovers(parent: Path) -> None:
    """Folders of our own gateways that were killed: nobody holds their lock. A young one may be about to take it."""
    oldest_s = time.time() - LEFTOVER_S
    for folder in parent.glob("chasqui-*"):
        with contextlib.suppress(OSError):
            stat = folder.lstat()
            if folder.is_symlink() or stat.st_uid != os.getuid() or stat.st_mtime > oldest_s:
                continue
            lock = _locked(folder)
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed; holds across containers, where process ids mean nothing.

    Raises:
        OSError: somebody else holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


async def _spawned(command: list[str], key: str) -> asyncio.subprocess.Process:
    """The started process; one whose start is cancelled half-way is killed and collected, not left behind."""
    spawn = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {KEY_ENV: key, "GGML_NO_BACKTRACE": "1"},
            limit=LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for the gateway, which lets streams finish
        )
    )
    try:
        return await asyncio.shield(spawn)
    except asyncio.CancelledError:
        await _killed(await spawn)
        raise


async def _killed(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


class _Process:
    """A started worker and the way to talk to it."""

    def __init__(self, process: asyncio.subprocess.Process, relay: Relay, socket: Path, ready: dict[str, Any]) -> None:
        self.process = process
        self.relay = relay
        self.socket = socket
        self.ready = ready

    @property
    def alive(self) -> bool:
        return self.process.returncode is None and not _has_ended(self.process.pid)


def _has_ended(pid: int) -> bool:
    """Whether a child is dead though nobody has collected it yet: asyncio hears of it a moment later."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


class Member:
    """One local model.

    Args:
        on_restart: told each time a worker is started after one of the same member died by itself.
    """

    def __init__(
        self,
        settings: LlamaCppSettings,
        path: Path,
        *,
        sockets: Sockets,
        clock: Callable[[], float] = time.monotonic,
        on_restart: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.name = settings.name
        self.path = path
        self._settings = settings
        self._sockets = sockets
        self._clock = clock
        self._on_restart = on_restart
        self._current: _Process | None = None
        self._starting: asyncio.Task[_Process] | None = None
        self._users = 0
        self._last_use_s = clock()
        self._failures = 0
        self._failed: tuple[float, str] | None = None
        self._closed = False
        self._crashed = False
        self._watchers: set[asyncio.Task[None]] = set()

    def status(self) -> str:
        if self._starting is not None:
            return "starting"
        if self._current is not None and self._current.alive:
            return "ready"
        return "failed" if self._failed else "asleep"

    @property
    def pid(self) -> int | None:
        return self._current.process.pid if self._current is not None and self._current.alive else None

    @contextlib.asynccontextmanager
    async def awake(self) -> AsyncIterator[Relay]:
        """The worker, started if need be; it is not stopped for idleness as long as somebody is inside.

        Raises:
            BackendUnavailable: it does not start; the message says why.
        """
        self._users += 1
        try:
            yield (await self._wake()).relay
        finally:
            self._users -= 1
            self._last_use_s = self._clock()

    async def _wake(self) -> _Process:
        if self._current is not None and self._current.alive:
            return self._current
        self._refuse_while_backing_off()
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name=f"start {self.name}")
            self._starting.add_done_callback(self._started)
        # Shielded: the client who came first may leave, the others still wait for the same start.
        return await asyncio.shield(self._starting)

    def _refuse_while_backing_off(self) -> None:
        if self._closed:
            raise BackendUnavailable(self.name, "the gateway is stopping")
        if self._failed is not None:
            until_s, words = self._failed
            if (left_s := until_s - self._clock()) > 0:
                raise BackendUnavailable(self.name, words, retry_after_s=left_s)

    def _started(self, task: "asyncio.Task[_Process]") -> None:
        self._starting = None
        if task.cancelled():
            return
        if (exc := task.exception()) is not None:
            self._failures += 1
            delay_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            self._failed = (self._clock() + delay_s, exc.reason if isinstance(exc, BackendUnavailable) else str(exc))
            return
        self._failures, self._failed = 0, None
        self._current = task.result()
        if self._crashed:
            self._crashed = False
            self._on_restart(self.name)

    async def _start(self) -> _Process:
        started_s = self._clock()
        if self._current is not None:  # dead, then: one that was stopped on purpose is no longer current
            self._crashed = True
        await self._stop_current()
        socket, key = self._sockets.new(), secrets.token_hex(16)
        process = await _spawned(worker_command(WorkerOptions.of(self._settings, self.path, socket)), key)
        tail: deque[str] = deque(maxlen=8)
        errors = asyncio.create_task(self._follow(process, tail))
        try:
            ready = await self._ready_line(process, errors, tail)
        except BaseException:  # cancelled, too: a worker nobody knows must not live on
            await _killed(process)
            await errors
            raise
        watcher = asyncio.create_task(self._watch(process, errors), name=f"watch {self.name}")
        self._watchers.add(watcher)  # the loop holds tasks weakly
        watcher.add_done_callback(self._watchers.discard)
        log.info("worker '%s' is ready in %.1f s (pid %d)", self.name, self._clock() - started_s, process.pid)
        transport = Http1Transport("http://worker/v1", socket_path=str(socket), keepalive_s=3000)
        headers = {"authorization": f"Bearer {key}", "x-chasqui-tokens": "1"}
        return _Process(
            process, Relay(self.name, transport, keys=KeyRing([headers]), timeouts=LOCAL_TIMEOUTS), socket, ready
        )

    async def _ready_line(
        self, process: asyncio.subprocess.Process, errors: "asyncio.Task[None]", tail: deque[str]
    ) -> dict[str, Any]:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await process.stdout.readline()
                if not line:
                    await process.wait()
                    await errors
                    log.error("worker '%s' for %s ended at start:\n%s", self.name, self.path, "\n".join(tail))
                    reason = tail[-1] if tail else f"exit {process.returncode}"
                    raise BackendUnavailable(self.name, f"its worker ended at start: {reason}")
        except TimeoutError:
            raise BackendUnavailable(self.name, f"its worker did not start within {START_TIMEOUT_S:g} s") from None
        return msgspec.json.decode(line, type=dict[str, Any])

    async def _follow(self, process: asyncio.subprocess.Process, tail: deque[str]) -> None:
        """The worker's words, into our log."""
        assert process.stderr is not None
        async for line in process.stderr:
            words = line.decode("utf-8", "replace").rstrip()
            if words:
                tail.append(words)
                log.debug("worker '%s': %s", self.name, words)

    async def _watch(self, process: asyncio.subprocess.Process, errors: "asyncio.Task[None]") -> None:
        """Waits for the process's end, so that a death nobody asked for is logged when it happens."""
        await asyncio.gather(process.wait(), errors)
        current = self._current
        if current is not None and current.process is process:
            log.error(
                "worker '%s' died (exit %s); it is started again at the next request", self.name, process.returncode
            )

    async def has_died(self) -> bool:
        """Whether the current process is dead. Its socket closes a moment before the system reports its end."""
        current = self._current
        if current is None:
            return True
        try:
            await asyncio.wait_for(current.process.wait(), DEATH_REPORT_S)
        except TimeoutError:
            return False
        return True

    async def stop_if_idle(self) -> None:
        idle_s = self._clock() - self._last_use_s
        if self._current is not None and not self._users and idle_s >= self._settings.idle_stop_s:
            log.info("worker '%s' is stopped after %.0f s without a request", self.name, idle_s)
            await self._stop_current()

    async def aclose(self) -> None:
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stop_current()
        await asyncio.gather(*self._watchers)

    async def _stop_current(self) -> None:
        current, self._current = self._current, None
        if current is None:
            return
        await current.relay.aclose()
        if current.alive:
            current.process.terminate()
            try:
                await asyncio.wait_for(current.process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                current.process.kill()
                await current.process.wait()
        current.socket.unlink(missing_ok=True)


class Fleet:
    """All members, and the task that stops the idle ones."""

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_restart: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._sockets = Sockets()
        self._members: weakref.WeakSet[Member] = (
            weakref.WeakSet()
        )  # a backend that is no longer configured takes its own along
        self._sleep = sleep
        self._on_restart = on_restart
        self._keeper: asyncio.Task[None] | None = None

    def add(self, settings: LlamaCppSettings, path: Path) -> Member:
        member = Member(settings, path, sockets=self._sockets, on_restart=self._on_restart)
        self._members.add(member)
        return member

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._stop_idle_ones(), name="fleet")

    async def _stop_idle_ones(self) -> None:
        while True:
            await self._sleep(1.0)
            for member in list(self._members):
                await member.stop_if_idle()

    async def aclose(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(member.aclose() for member in list(self._members)))
        self._sockets.remove()
