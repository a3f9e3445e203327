"""/admin/backends: what each engine is at work on; models of workers in and out of memory. /admin/ram-disk: files staged there."""

import asyncio
from typing import Any, Literal

import msgspec
from litestar import Request, delete, get, post
from litestar.params import FromPath

from backends.base import Backend
from backends.errors import InvalidRequest
from backends.health import Watched
from backends.llamacpp.ram_disk import Staged
from backends.managed import Managed
from gateway.auth import needs_key
from gateway.routes.answers import actor_of, read_as, services_of
from policies.errors import NotThere


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What a worker is to do."""

    action: Literal["load", "unload", "swap"]
    model: str | None = None
    """For `swap`: a file, as `backends[].model` names it; on another machine, a file beside the one that it was started with."""


@get("/admin/backends", guards=[needs_key], tags=["Administration"], summary="What engines are at work on")
async def list_backends(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Workers are asked at that moment, those on other machines, too."""
    backends = services_of(request).backends
    described = await asyncio.gather(*(_described(name, backend) for name, backend in backends.items()))
    return {"object": "list", "data": described, "has_more": False}


@get("/admin/backends/{name:path}", guards=[needs_key], tags=["Administration"], summary="What one is at work on")
async def get_backend(request: Request[Any, Any, Any], name: FromPath[str]) -> dict[str, Any]:
    return await _described(*_named(request, name))


@post(
    "/admin/backends/{name:path}",
    guards=[needs_key],
    status_code=200,
    tags=["Administration"],
    summary="Load, unload or swap a model",
)
async def order_backend(request: Request[Any, Any, Any], name: FromPath[str]) -> dict[str, Any]:
    """Answers when it is done. Clients wait meanwhile, they are not refused; requests that the model is at work on end first."""
    order = await read_as(request, Order)
    name, backend = _named(request, name)
    worker = backend.inner
    if not isinstance(worker, Managed):
        raise InvalidRequest(
            f"'{name}' is no worker: it has no model that could be loaded here. A worker on another machine is listed with "
            "`node: true`.",
            param="action",
        )
    if (order.model is not None) != (order.action == "swap"):
        raise InvalidRequest("'model' goes with the action 'swap', and with no other.", param="model")
    await _obeyed(worker, order)
    details = {"model": order.model} if order.model is not None else {}
    await services_of(request).house.audit.record(actor_of(request), f"backend.{order.action}", name, details)
    return await _described(name, backend)


@get("/admin/ram-disk", guards=[needs_key], tags=["Administration"], summary="Model files staged in memory")
async def list_ram_disk(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return _listed(services_of(request).house.fleet.staged())


@delete(
    "/admin/ram-disk", guards=[needs_key], status_code=200, tags=["Administration"], summary="Remove staged model files"
)
async def clear_ram_disk(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Those that no worker has open. The answer lists what is gone."""
    house = services_of(request).house
    gone = await house.fleet.clear_ram_disk()
    await house.audit.record(
        actor_of(request), "ram_disk.clear", "ram-disk", {"files": [one.path.name for one in gone]}
    )
    return _listed(gone)


async def _obeyed(worker: Managed, order: Order) -> None:
    match order.action:
        case "load":
            await worker.load()
        case "unload":
            await worker.unload()
        case "swap":
            await worker.swap(order.model or "")


def _named(request: Request[Any, Any, Any], name: str) -> tuple[str, Watched]:
    name = name.removeprefix("/")
    backend = services_of(request).backends.get(name)
    if backend is None:
        raise NotThere("backend", name)
    return name, backend


async def _described(name: str, backend: Watched) -> dict[str, Any]:
    inner: Backend = backend.inner
    facts = backend.facts
    worker = await inner.describe() if isinstance(inner, Managed) else None
    return {
        "id": name,
        "object": "backend",
        "status": worker["status"] if worker is not None else backend.status(),
        "local": backend.local,
        "in_flight": facts.in_flight,
        "waiting": backend.waiting,
        "latency_ms": None if facts.latency_s is None else round(facts.latency_s * 1000, 1),
        "worker": worker,
    }


def _listed(files: list[Staged]) -> dict[str, Any]:
    data = [{"id": one.path.name, "object": "ram_disk.file", "bytes": one.bytes} for one in files]
    return {"object": "list", "data": data, "has_more": False}
