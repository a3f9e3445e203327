"""A worker that nobody stands above: on another machine, it takes its model out of memory and another one in when it is told to.

POST /v1/load · /v1/unload · /v1/swap {model}      the model is a file beside the one that the worker was started with
GET  /v1/status                                    also while no model is loaded

Requests that come while it is busy with that wait. A request for a model that was unloaded loads it.
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from backends.asgi import Receive, Send, read_body, send_json
from backends.errors import BackendError, InvalidRequest, ModelFileUnusable
from backends.llamacpp.api import WorkerApi, send_error
from backends.llamacpp.embedding_queue import EmbeddingQueue
from backends.llamacpp.gate import Gate, StillInside
from backends.llamacpp.generation import Generator
from backends.llamacpp.worker_status import memory_bytes
from backends.wire import Body

log = logging.getLogger("chasqui.worker")

WAIT_S = 60.0
"""For requests to end before the model goes."""

MAX_BODY_BYTES = 64 * 1024


class Work(NamedTuple):
    """A loaded model."""

    thread: Generator | EmbeddingQueue
    api: WorkerApi


Start = Callable[[Path], Awaitable[Work]]
Trial = Callable[[Path], Awaitable[None]]


class Host:
    """
    Args:
        start: loads a model.
        trial: loads it in another process, which may die of it.
        key: every request must carry it as a bearer, `/health` excepted.
    """

    def __init__(self, start: Start, trial: Trial, path: Path, *, key: str) -> None:
        self._start = start
        self._trial = trial
        self._path = path
        self._key = f"Bearer {key}".encode()
        self._gate = Gate()
        self._turn = asyncio.Lock()
        self._work: Work | None = None
        self._orders = {"/load": self._load, "/unload": self._unload, "/swap": self._swap}

    async def load(self) -> Work:
        """
        Raises:
            ModelFileUnusable
        """
        async with self._turn:
            if self._work is None:
                self._work = await self._start(self._path)
            return self._work

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"].removeprefix("/v1")
        allowed = hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._key)
        try:
            if not allowed and path != "/health":  # before anything is loaded for somebody who has no key
                await send_error(
                    send, 401, "this worker needs its key", type_="authentication_error", code="invalid_api_key"
                )
            elif path in self._orders and scope["method"] == "POST":
                await self._orders[path](receive)
                await send_json(send, 200, {"status": self._status, "model": self._path.name})
            elif path == "/health":
                await send_json(send, 200, {"status": "ok"})
            elif path == "/status":  # also while everything else waits
                await send_json(send, 200, self._told())
            else:
                async with self._gate.inside():
                    await (await self.load()).api(scope, receive, send)
        except InvalidRequest as exc:
            await send_error(send, 400, str(exc), param=exc.param, code=exc.code)
        except (StillInside, BackendError) as exc:
            words = (
                f"{exc.count} requests are still at work after {WAIT_S:g} s"
                if isinstance(exc, StillInside)
                else str(exc)
            )
            await send_error(send, 503, words, type_="server_error", code="backend_unavailable")

    @property
    def _status(self) -> str:
        return "asleep" if self._work is None else "ready"

    def _told(self) -> dict[str, Any]:
        if self._work is None:
            return {"status": self._status, "model": self._path.name, "memory_bytes": memory_bytes()}
        return {"status": self._status} | self._work.api.status()

    async def _load(self, _: Receive) -> None:
        await self.load()

    async def _unload(self, _: Receive) -> None:
        async with self._alone():
            await self._drop()

    async def _swap(self, receive: Receive) -> None:
        body = Body(await read_body(receive, limit_bytes=MAX_BODY_BYTES))
        path = self._sibling(body.require("model", str))
        async with self._alone():
            before = self._path
            await self._drop()
            try:
                await self._trial(path)
                self._work = await self._start(path)
                self._path = path
            except ModelFileUnusable:
                self._work = await self._start(before)
                raise
        log.info("%s in place of %s", path.name, before.name)

    def _sibling(self, name: str) -> Path:
        """
        Raises:
            InvalidRequest: it is not a GGUF in the folder of the first one.
        """
        path = self._path.parent / name
        try:
            there = Path(name).name == name and path.suffix == ".gguf" and path.is_file()
        except OSError:  # a name that no file can have
            there = False
        if not there:
            raise InvalidRequest(f"'{name[:200]}' is no .gguf file beside {self._path.name}.", param="model")
        return path

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._gate.paused(WAIT_S), self._turn:
            yield

    async def _drop(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            await work.api.aclose()
            await asyncio.to_thread(work.thread.close)

    async def aclose(self) -> None:
        await self._drop()
