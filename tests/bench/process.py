"""A process on one core, from the moment its port answers until the whole of it has ended, and the processor time it takes."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

GATEWAY_CORE, LOAD_CORE = "0", "1"

STOP_S = 10.0
QUIET_SHARE, QUIET_STEP_S, QUIET_LIMIT_S = 0.1, 0.3, 15.0

Process = subprocess.Popen[bytes]


class NotRunning(Exception):
    """It did not start, or it ended or stopped answering under load."""


@contextmanager
def running(
    command: list[str], core: str, port: int, *, environment: Mapping[str, str] | None = None, start_s: float = 20.0
) -> Iterator[Process]:
    """The command on one core. Its words go to a file, as a service's would; it leads a session, which is ended as a whole."""
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            ["taskset", "-c", core, *command],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + start_s
            while not answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    words.seek(0)
                    last = words.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise NotRunning(f"it does not answer on its port (it had {start_s:.0f} s); last words: {last}")
                pause(process, 0.05)
            yield process
        finally:
            end(process)


def pause(process: Process, seconds: float) -> None:
    """Wait for the process to end, but not longer than this."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def end(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    pause(process, STOP_S)
    with suppress(ProcessLookupError):  # what would not end in time, and what the leader left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_S)


def cpu_s(process: Process) -> float:
    """User and system time of the process and everything it has started, children that have ended included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_bytes().rpartition(b") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended since the listing
        if int(fields[3]) == process.pid:  # the session, which children share
            ticks += sum(map(int, fields[11:15]))  # utime, stime, and both of the children that were waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def settle(process: Process) -> None:
    """Wait until the process has let go of what the load before left half-way, so that the next one does not pay for it."""
    deadline = time.monotonic() + QUIET_LIMIT_S
    used = QUIET_STEP_S
    while used > QUIET_SHARE * QUIET_STEP_S and process.poll() is None and time.monotonic() < deadline:
        before = cpu_s(process)
        pause(process, QUIET_STEP_S)
        used = cpu_s(process) - before


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
