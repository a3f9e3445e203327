"""POST /v1/rerank."""

from litestar import post
from litestar.types import ASGIApp

from backends.wire import Body
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.hot import HotRoute
from gateway.services import Services


async def rank(services: Services, exchange: Exchange, body: Body, outlet: Outlet) -> None:
    await services.reranking.answer(exchange, body, outlet)


RERANK = HotRoute("/v1/rerank", "rerank", rank)


@post("/v1/rerank", status_code=200, tags=["OpenAI"], summary="Rerank")
async def rerank() -> ASGIApp:
    """As Jina and Cohere: a `query` and `documents`; the most relevant come first, with their place in the request."""
    return RERANK  # type: ignore[return-value]
