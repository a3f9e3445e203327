"""One worker process: started on first use, watched, stopped when idle or when others need its place, started again after a crash.

States of a member: asleep -> starting -> ready -> asleep (idle, told to, or the process ended). `_wake` is the only way from
asleep to ready and is shared by everybody who waits; a start that fails leaves the member asleep and, for
`BACKOFF_S[n]` after the n-th failure in a row, answers at once with the same words instead of trying again. While a member is
paused, whoever comes waits outside until it goes on; those who are inside end first.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from backends.errors import BackendBusy, BackendError, BackendUnavailable, ModelFileUnusable
from backends.keyring import KeyRing
from backends.llamacpp.eviction import Loaded
from backends.llamacpp.fetching import Fetching
from backends.llamacpp.gate import Gate, StillInside
from backends.llamacpp.sockets import Sockets
from backends.llamacpp.totals import Totals
from backends.llamacpp.worker_command import KEY_ENV, WorkerOptions, worker_command
from backends.relay import Relay
from backends.settings import LlamaCppSettings, Timeouts
from backends.transport_http1 import Http1Transport

log = logging.getLogger("chasqui.fleet")

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
DEATH_REPORT_S = 0.5
LINE_BYTES = 2**20
STATUS_TIMEOUT_S = 1.0
BACKOFF_S = (0.0, 1.0, 5.0, 15.0, 60.0)
LOCAL_TIMEOUTS = Timeouts(connect_s=5, first_byte_s=3600, idle_s=600, total_s=3600)
"""A local model may chew on a long prompt for minutes; its death is seen at once, because the socket closes."""

FETCH_RETRY_S = 30.0
"""That a client is told to wait for a model that is being downloaded."""

OVERHEAD_BYTES = 96 * 2**20
"""Of a worker beside its file, until it has been measured."""


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


class Surroundings(Protocol):
    """What a member needs of its fleet."""

    sockets: Sockets

    async def make_room(self, member: "Member") -> None:
        """
        Raises:
            BackendUnavailable: there can be none.
        """
        ...

    async def place(self, member: "Member") -> Path:
        """Where its file is read from.

        Raises:
            ModelFileUnusable
        """
        ...


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
        fleet: Surroundings,
        fetching: Fetching | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_restart: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.name = settings.name
        self.path = path
        self.settings = settings
        self.status_told: dict[str, Any] = {}
        """What the worker has said of itself last; empty while there is none."""
        self.totals = Totals()
        self.has_room = False
        """Its place in memory is its own."""
        self._roomed = asyncio.Event()
        self._fleet = fleet
        self._fetching = fetching
        self._gate = Gate()
        self._swapping = asyncio.Lock()
        self._measured_bytes = 0
        self._clock = clock
        self._on_restart = on_restart
        self._current: _Process | None = None
        self._asked: _Process | None = None
        """Whose counters are the current ones."""
        self._starting: asyncio.Task[_Process] | None = None
        self._last_use_s = clock()
        self._failures = 0
        self._failed: tuple[float, str] | None = None
        self._closed = False
        self._crashed = False
        self._watchers: set[asyncio.Task[None]] = set()
        """Of processes that live, and of those that are being stopped."""

    def status(self) -> str:
        if self._starting is not None:
            return "downloading" if self._fetching is not None and self._fetching.under_way else "starting"
        if self._current is not None and self._current.alive:
            return "ready" if not self._gate.is_paused else "stopping"
        return "failed" if self._failed else "asleep"

    @property
    def pid(self) -> int | None:
        return self._current.process.pid if self._current is not None and self._current.alive else None

    @contextlib.asynccontextmanager
    async def awake(self) -> AsyncIterator[Relay]:
        """The worker, started if need be; it is not stopped for idleness as long as somebody is inside.

        Raises:
            BackendUnavailable: it does not start; the message says why.
            BackendBusy: others have its place, or somebody holds it, for longer than `max_wait_s`.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.settings.max_wait_s):
                    await stack.enter_async_context(self._gate.inside())
            except TimeoutError:
                raise BackendBusy(self.name, retry_after_s=self.settings.max_wait_s) from None
            try:
                yield (await self._wake()).relay
            finally:
                self._last_use_s = self._clock()

    @contextlib.asynccontextmanager
    async def paused(self, wait_s: float) -> AsyncIterator[None]:
        """Nobody is inside, and whoever comes waits.

        Raises:
            BackendUnavailable: those who are inside take longer than `wait_s`; nothing has changed.
        """
        try:
            async with self._gate.paused(wait_s):
                if self._starting is not None and not (await asyncio.wait([self._starting], timeout=wait_s))[0]:
                    raise BackendUnavailable(self.name, f"it is still starting after {wait_s:g} s")
                yield
        except StillInside as exc:
            words = f"it is still at work on {exc.count} requests after {wait_s:g} s"
            raise BackendUnavailable(self.name, words) from None

    async def load(self) -> None:
        """Into memory, if it is not there.

        Raises:
            BackendUnavailable
        """
        async with self.awake():
            pass

    async def unload(self, wait_s: float) -> None:
        """Out of memory, when those who are inside have ended; the next request loads it again.

        Raises:
            BackendUnavailable: they take too long.
        """
        async with self.paused(wait_s):
            await self._stop_current()

    async def swap(self, path: Path, wait_s: float) -> None:
        """Another file in place of this one; who comes meanwhile waits for it. A file that does not load leaves the old one.

        Raises:
            BackendUnavailable
        """
        async with self._swapping, self.paused(wait_s):
            before = self.path, self._fetching
            await self._stop_current()
            self.path, self._fetching, self._measured_bytes = path, None, 0
            self._failures, self._failed = 0, None
            try:
                await self._wake()
            except BaseException:  # cancelled, too: what has started by then is not what `path` says
                await asyncio.shield(asyncio.create_task(self._swap_back(*before)))
                raise
            self._last_use_s = self._clock()

    async def _swap_back(self, path: Path, fetching: Fetching | None) -> None:
        self.path, self._fetching, self._measured_bytes = path, fetching, 0
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._stop_current()
        self._failures, self._failed = 0, None

    def loaded(self) -> Loaded:
        """For the choice of who leaves."""
        return Loaded(self.name, self.memory_bytes, self._last_use_s, self._gate.inside_now, self.settings.pinned)

    @property
    def memory_bytes(self) -> int:
        """Of the worker: measured, or before that, what its file promises."""
        if self._measured_bytes:
            return self._measured_bytes
        try:
            return self.path.stat().st_size + OVERHEAD_BYTES
        except OSError:
            return OVERHEAD_BYTES

    async def ask_status(self) -> None:
        """What the worker says of itself; one that does not answer is left to those who ask it for more."""
        if self._current is None or not self._current.alive:
            self.status_told = {}
            return
        await self._ask(self._current)

    async def _ask(self, process: _Process) -> None:
        with contextlib.suppress(BackendError, msgspec.MsgspecError, TimeoutError):
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                told = msgspec.json.decode(await process.relay.get("/status"), type=dict[str, Any])
            if self._asked is process:
                self.status_told = told
                self._measured_bytes = int(told.get("memory_bytes") or 0)
                self.totals.saw(told.get("counters") or {})

    async def _wake(self) -> _Process:
        if self._current is not None and self._current.alive:
            return self._current
        self._refuse_while_backing_off()
        if self._starting is None:
            self._leave_room()  # one that has died has none any more: nobody must wait for this start to end its work
            self._starting = asyncio.create_task(self._start(), name=f"start {self.name}")
            self._starting.add_done_callback(self._started)
        starting = self._starting
        if not self.has_room:
            await self._wait_for_room(starting)
        # Shielded: the client who came first may leave, the others still wait for the same start.
        return await asyncio.shield(starting)

    async def _wait_for_room(self, starting: "asyncio.Task[_Process]") -> None:
        """As long as anybody waits for a turn, and not as long as a load takes."""
        roomed = asyncio.ensure_future(self._roomed.wait())
        try:
            await asyncio.wait(
                [roomed, starting], timeout=self.settings.max_wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not (roomed.done() or starting.done()):
                if self._fetching is not None and self._fetching.under_way:
                    raise BackendUnavailable(self.name, str(self._fetching), retry_after_s=FETCH_RETRY_S)
                raise BackendBusy(self.name, retry_after_s=self.settings.max_wait_s)
        finally:
            roomed.cancel()

    def take_room(self) -> None:
        """Its place in memory is its own, until it is stopped."""
        self.has_room = True
        self._roomed.set()

    def _leave_room(self) -> None:
        self.has_room = False
        self._roomed.clear()

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
            self._leave_room()
            return
        if (exc := task.exception()) is not None:
            self._failures += 1
            delay_s = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            self._failed = (self._clock() + delay_s, exc.reason if isinstance(exc, BackendUnavailable) else str(exc))
            self._leave_room()
            return
        self._failures, self._failed = 0, None
        self._current = self._asked = task.result()
        if self._crashed:
            self._crashed = False
            self._on_restart(self.name)

    async def _start(self) -> _Process:
        try:
            return await self._launched()
        except (OSError, msgspec.MsgspecError) as exc:
            raise BackendUnavailable(self.name, f"its worker cannot be started: {exc}") from exc

    async def _launched(self) -> _Process:
        started_s = self._clock()
        if self._current is not None:  # dead, then: one that was stopped on purpose is no longer current
            self._crashed = True
        await self._stop_current()
        try:
            if self._fetching is not None:  # before it takes others' room, which it may not need for an hour
                self.path = await self._fetching.run()
            await self._fleet.make_room(self)
            path = await self._fleet.place(self)
        except ModelFileUnusable as exc:
            raise BackendUnavailable(self.name, str(exc)) from None
        socket, key = self._fleet.sockets.new(), secrets.token_hex(16)
        process = await _spawned(worker_command(WorkerOptions.of(self.settings, path, socket)), key)
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
        for note in ready.get("notes", ()):
            log.warning("worker '%s': %s", self.name, note)
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
            if self._starting is None:
                self._leave_room()
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
        if self.settings.pinned:
            return
        if self._current is not None and not self._gate.inside_now and idle_s >= self.settings.idle_stop_s:
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
        self._leave_room()
        current, self._current = self._current, None
        if current is None:
            return
        stopping = asyncio.create_task(self._stop(current), name=f"stop {self.name}")
        self._watchers.add(stopping)
        stopping.add_done_callback(self._watchers.discard)
        await asyncio.shield(stopping)  # who waits may leave; the process must end

    async def _stop(self, current: _Process) -> None:
        if current.alive:
            await self._ask(current)  # for what it has counted since it was asked last
        if self._asked is current:
            self._asked, self.status_told = None, {}
            self.totals.ended()
        await current.relay.aclose()
        if current.alive:
            current.process.terminate()
            try:
                await asyncio.wait_for(current.process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                current.process.kill()
                await current.process.wait()
        current.socket.unlink(missing_ok=True)
