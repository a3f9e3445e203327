"""/admin/cache: what the embedding cache holds, and taking it out."""

import asyncio
import base64
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get
from litestar.params import FromQuery, Parameter

from backends.errors import InvalidRequest
from gateway.auth import needs_key
from gateway.routes.admin.pages import Limit, page
from gateway.routes.answers import actor_of, services_of

MAX_AGE_S = 10**10


@get("/admin/cache", guards=[needs_key], tags=["Administration"], summary="What the embedding cache holds")
async def show_cache(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """By model; hits and misses since the start."""
    services = services_of(request)
    cache = services.cache
    kept = {one.model: one for one in await cache.store.kept()}
    names = sorted({*kept, *cache.hits, *cache.misses})
    data = []
    for name in names:
        one = kept.get(name)
        data.append(
            {
                "id": name,
                "object": "cache.model",
                "vectors": one.vectors if one else 0,
                "bytes": one.bytes if one else 0,
                "oldest_at": one.oldest_at if one else None,
                "newest_at": one.newest_at if one else None,
                "hits": cache.hits[name],
                "misses": cache.misses[name],
            }
        )
    memory = {"vectors": len(cache.memory), "bytes": cache.memory.bytes}
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "memory": memory,
        "waiting": cache.waiting,
        "faults": dict(cache.faults),
        "files": dict(
            zip(("count", "bytes"), await asyncio.to_thread(services.embedding_files.shelf.size), strict=True)
        ),
        "answers": dict(zip(("count", "bytes"), await services.answers.size(), strict=True)),
    }


@get("/admin/cache/texts", guards=[needs_key], tags=["Administration"], summary="Cached texts")
async def list_texts(
    request: Request[Any, Any, Any],
    limit: Limit = 20,
    after: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    owner: FromQuery[str | None] = None,
    prefix: FromQuery[str] = "",
) -> dict[str, Any]:
    """Where texts are kept, by owner (`role:…` or `key:…`) and text. `after`: the `id` of the last one seen."""
    check_plain(model=model, owner=owner, prefix=prefix)
    store = services_of(request).cache.store
    rows = await store.list_texts(
        limit=limit + 1, model=model, owner=owner, prefix=prefix, after=_place(after) if after else None
    )
    data = [
        {
            "id": _id(row.owner, row.text, row.key),
            "object": "cache.text",
            "owner": row.owner,
            "model": row.model,
            "text": row.text,
            "created_at": row.made_at,
        }
        for row in rows
    ]
    return page(data, limit)


@delete("/admin/cache", guards=[needs_key], status_code=200, tags=["Administration"], summary="Take vectors out")
async def clear_cache(
    request: Request[Any, Any, Any],
    model: FromQuery[str | None] = None,
    older_than_s: FromQuery[Annotated[int, Parameter(ge=0)] | None] = None,
    prefix: FromQuery[str | None] = None,
    everything: FromQuery[bool] = False,
) -> dict[str, Any]:
    """Those that all of what is given is true of: a model (a backend's name, as `GET /admin/cache` lists them), an age, the
    beginning of a kept text; or `everything=true`, with the zips of files and the kept answers of chats."""
    if (model, older_than_s, prefix) == (None, None, None) and not everything:
        raise InvalidRequest("say which: 'model', 'older_than_s' or 'prefix'; or 'everything=true'.", param="model")
    if not 0 <= (older_than_s or 0) <= MAX_AGE_S:
        raise InvalidRequest(f"'older_than_s' lies between 0 and {MAX_AGE_S}.", param="older_than_s")
    if prefix == "":
        raise InvalidRequest("an empty 'prefix' means nothing; say 'everything=true'.", param="prefix")
    check_plain(model=model, prefix=prefix)
    services = services_of(request)
    gone = await services.cache.forget(model=model, older_than_s=older_than_s, prefix=prefix)
    if everything:
        await services.answers.clear()
        await asyncio.to_thread(services.embedding_files.shelf.clear)
    details = {"model": model, "older_than_s": older_than_s, "prefix": bool(prefix), "vectors": gone}
    await services.house.audit.record(actor_of(request), "cache.clear", "embedding-cache", details)
    return {"object": "cache.deleted", "vectors": gone}


def check_plain(**values: str | None) -> None:
    """
    Raises:
        InvalidRequest: PostgreSQL knows no NUL in a text.
    """
    for name, value in values.items():
        if value is not None and "\0" in value:
            raise InvalidRequest(f"'{name}' holds a character that no text has.", param=name)


def _id(owner: str, text: str, key: bytes) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([owner, text, key])).decode()


def _place(id_: str) -> tuple[str, str, bytes]:
    try:
        place = msgspec.json.decode(base64.urlsafe_b64decode(id_.encode()), type=tuple[str, str, bytes])
        check_plain(after=place[0] + place[1])
        return place
    except (ValueError, msgspec.MsgspecError):
        raise InvalidRequest("'after' is no id of this list.", param="after") from None
