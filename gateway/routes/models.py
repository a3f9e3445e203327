"""GET /v1/models: exactly the names that the key may send."""

from typing import Any

from litestar import Request, get
from litestar.params import FromPath

from gateway.auth import needs_key
from gateway.routes.answers import exchange_of, services_of
from policies.errors import ModelUnknown


@get("/v1/models", guards=[needs_key], tags=["OpenAI"], summary="Models that this key may use")
async def list_models(request: Request[Any, Any, Any]) -> dict[str, Any]:
    services, caller = services_of(request), exchange_of(request).caller
    assert caller is not None
    return {"object": "list", "data": [_model(name, services.created_at) for name in services.targets.names(caller)]}


@get("/v1/models/{model_id:path}", guards=[needs_key], tags=["OpenAI"], summary="One model")
async def get_model(request: Request[Any, Any, Any], model_id: FromPath[str]) -> dict[str, Any]:
    services, caller = services_of(request), exchange_of(request).caller
    assert caller is not None
    name = str(model_id).removeprefix("/")
    if name not in services.targets.names(caller):
        raise ModelUnknown(name)
    return _model(name, services.created_at)


def _model(name: str, created_at: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created_at, "owned_by": "chasqui"}
