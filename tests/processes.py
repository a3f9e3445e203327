"""`chasqui serve` as its users start it: a process of its own, which can be killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT
from tests.running import ADMIN_KEY, write_config

READY = "chasqui is ready on "


class Serving:
    """One gateway in one home; it may be killed and started again."""

    def __init__(self, home: Path, config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.home = home
        self.url = ""
        self.log: list[str] = []
        write_config(home, config)
        self._environment = {**os.environ, "CHASQUI_ADMIN_KEY": ADMIN_KEY, "PYTHONUNBUFFERED": "1", **environment}
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None
        self._ready = threading.Event()

    def start(self) -> None:
        """Until it is ready."""
        self._ready.clear()
        command = [
            sys.executable,
            "-m",
            "gateway.cli",
            "serve",
            "--config",
            str(self.home / "chasqui.yaml"),
            "--port",
            "0",
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._reading = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reading.start()
        assert self._ready.wait(60), "".join(self.log)
        assert self.url, "".join(self.log)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if READY in line:
                self.url = line.split(READY)[1].split()[0]
                self._ready.set()
            else:
                self.log.append(line)
        self._ready.set()

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(30)
            assert self._reading is not None
            self._reading.join(10)
            assert process.stdout is not None
            process.stdout.close()

    def client(self, key: str = ADMIN_KEY, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=30, **options)

    def new_key(self, **fields: Any) -> tuple[str, str]:
        """(id, key)"""
        with self.client() as http:
            made = http.post("/admin/keys", json={"name": "test"} | fields).json()
        return made["id"], made["key"]


@contextmanager
def serving(home: Path, config: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[Serving]:
    gateway = Serving(home, config, environment or {})
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.kill()
