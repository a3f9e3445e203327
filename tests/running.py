"""A whole gateway on a real socket, in this process but on a thread and loop of its own, for clients of every kind."""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

ADMIN_KEY = "sk-test-admin-0123456789abcdef"


@dataclass
class Gateway:
    url: str
    services: Services
    home: Path
    log: list[str]
    """What the access log has written, a text of several lines at a time."""
    key: str = ADMIN_KEY

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


@contextmanager
def running(home: Path, config: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """Start a gateway with this configuration (its `home` is `home`), stop it at the end."""
    file = home / "chasqui.yaml"
    file.write_text(yaml.safe_dump({"home": str(home), "backends": [], "models": []} | dict(config)))
    loaded = load(file, {"CHASQUI_ADMIN_KEY": ADMIN_KEY, **(environment or {})})
    listener = socket.create_server(("127.0.0.1", 0))
    ready: threading.Event = threading.Event()
    state: dict[str, Any] = {}
    log: list[str] = []

    async def serve() -> None:
        try:
            database = await open_database(loaded.settings.store.url)
            app = create_app(loaded, database, access_log=AccessLog(log.append))
            options = {
                "lifespan": "on",
                "log_config": None,
                "access_log": False,
                "ws": "none",
                "http": Protocol,
                "proxy_headers": False,
            }
            server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=3, **options))  # type: ignore[arg-type]
            state.update(server=server, services=app.services)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
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
        yield Gateway(f"http://127.0.0.1:{listener.getsockname()[1]}", state["services"], home, log)
    finally:
        state["server"].should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the gateway did not stop"
