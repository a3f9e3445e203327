"""Whether the process lives, whether it can work, and what it counts. No key needed."""

import asyncio
from typing import Any

from litestar import HttpMethod, Request, Response, get, route
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from gateway import __version__
from gateway.routes.answers import services_of

STORE_TIMEOUT_S = 1.0


@route("/health", http_method=[HttpMethod.GET, HttpMethod.HEAD], tags=["Operation"], summary="The process lives")
async def health() -> dict[str, str]:
    return {"status": "ok", "version": __version__}


@route(
    "/health/ready", http_method=[HttpMethod.GET, HttpMethod.HEAD], tags=["Operation"], summary="Requests can be served"
)
async def ready(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """503 only when a store fails; a backend or a collection that is not there makes it `degraded`."""
    services = services_of(request)
    store = "ok"
    try:
        async with asyncio.timeout(STORE_TIMEOUT_S), services.house.database.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError, TimeoutError):
        store = "failed"
    if services.house.journal.failing:
        store = "failed"
    limits = "failed" if services.house.quotas.failing else "ok"
    backends = {name: backend.status() for name, backend in services.backends.items()}
    collections = {name: one.state for name, one in services.knowledge.declared.items()}
    degraded = "failed" in (*backends.values(), limits) or not services.knowledge.ready
    unavailable = store == "failed" or (limits == "failed" and not services.house.quotas.goes_on_alone)
    status = "unavailable" if unavailable else "degraded" if degraded else "ready"
    body = {"status": status, "store": store, "limits": limits, "backends": backends, "collections": collections}
    return Response(body, status_code=503 if unavailable else 200)


@get("/metrics", tags=["Operation"], summary="Prometheus", media_type="text/plain; version=0.0.4; charset=utf-8")
async def metrics(request: Request[Any, Any, Any]) -> bytes:
    services = services_of(request)
    for name, vectors in services.knowledge.chunks().items():
        services.metrics.collection(name, vectors)
    return services.metrics.render()
