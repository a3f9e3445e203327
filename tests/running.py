"""A whole gateway on a real socket, in this process but on a thread and loop of its own, for clients of every kind."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn
import uvloop
import yaml

from gateway.access_log import AccessLog
from gateway.app import create_app
from gateway.database import open_database
from gateway.server import Protocol
from gateway.services import Services
from gateway.settings import load
from gateway.telemetry import Telemetry

ADMIN_KEY = "sk-test-admin-0123456789abcdef"


@dataclass
class Gateway:
    url: str
    app: Telemetry
    loop: asyncio.AbstractEventLoop
    server: uvicorn.Server
    home: Path
    log: list[str]
    """What the access log has written, a text of several lines at a time."""
    key: str = ADMIN_KEY
    admin_url: str = ""
    """Where `server.admin` is."""

    @property
    def services(self) -> Services:
        """Those in use."""
        return self.app.services

    def reload(self, config: Mapping[str, Any]) -> bool:
        """Write this configuration and have it taken over; says whether it was."""
        write_config(self.home, config)
        return asyncio.run_coroutine_threadsafe(self.app.reload(), self.loop).result(30)

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=30)

    def sdk(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key or self.key, **{"max_retries": 0, "timeout": 30} | options
        )

    def async_sdk(self, key: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0, timeout=30)

    def new_key(self, **fields: Any) -> str:
        with self.http as http:
            answer = http.post("/admin/keys", json={"name": "test"} | fields)
            assert answer.status_code == 201, answer.text
            return str(answer.json()["key"])


def write_config(home: Path, config: Mapping[str, Any]) -> None:
    whole = {"home": str(home), "backends": [], "models": []} | dict(config)
    (home / "chasqui.yaml").write_text(yaml.safe_dump(whole))


@contextmanager
def running(home: Path, config: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """Start a gateway with this configuration (its `home` is `home`), stop it at the end."""
    write_config(home, config)
    read = partial(load, home / "chasqui.yaml", {"CHASQUI_ADMIN_KEY": ADMIN_KEY, **(environment or {})})
    loaded = read()
    listener = socket.create_server(("127.0.0.1", 0))
    listeners = [listener]
    if loaded.settings.server.admin is not None:
        listeners.append(socket.create_server(("127.0.0.1", 0)))
    addresses = [one.getsockname() for one in listeners]
    ready: threading.Event = threading.Event()
    state: dict[str, Any] = {}
    log: list[str] = []

    async def serve() -> None:
        try:
            database = await open_database(loaded.settings.store.url)
            app = create_app(
                loaded,
                database,
                load=read,
                admin=addresses[1] if addresses[1:] else None,
                access_log=AccessLog(log.append),
            )
            options = {
                "lifespan": "on",
                "log_config": None,
                "access_log": False,
                "ws": "none",
                "http": Protocol,
                "proxy_headers": False,
            }
            grace_s: Any = loaded.settings.server.shutdown_s if "shutdown_s" in config.get("server", {}) else 3
            server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=grace_s, **options))  # type: ignore[arg-type]
            state.update(server=server, app=app, loop=asyncio.get_running_loop())
            serving = asyncio.create_task(server.serve(sockets=listeners))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            ready.set()
            await serving
        except BaseException as exc:
            state["failure"] = exc
            ready.set()

    thread = threading.Thread(target=lambda: uvloop.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30), "the gateway did not start"
    if "failure" in state:
        raise state["failure"]
    try:
        urls = [f"http://{host}:{port}" for host, port in addresses]
        yield Gateway(urls[0], state["app"], state["loop"], state["server"], home, log, admin_url=urls[-1])
    finally:
        state["server"].should_exit = True
        thread.join(20)
        for one in listeners:
            one.close()
        assert not thread.is_alive(), "the gateway did not stop"
