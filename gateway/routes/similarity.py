"""POST /v1/similarity and /v1/embeddings/search."""

from litestar import post
from litestar.types import ASGIApp

from backends.wire import Body
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from gateway.routes.hot import HotRoute
from gateway.services import Services


async def compare(services: Services, exchange: Exchange, body: Body, outlet: Outlet) -> None:
    await services.similarity.answer(exchange, body, outlet)


async def find(services: Services, exchange: Exchange, body: Body, outlet: Outlet) -> None:
    await services.text_searching.answer(exchange, body, outlet)


SIMILARITY = HotRoute("/v1/similarity", "similarity", compare)
TEXT_SEARCH = HotRoute("/v1/embeddings/search", "text_search", find)


@post("/v1/similarity", status_code=200, tags=["Embeddings"], summary="Compare strings")
async def similarity() -> ASGIApp:
    """`input`: each with each, a matrix. `pairs`: the two of each pair. Cosine, dot product, or euclidean distance."""
    return SIMILARITY  # type: ignore[return-value]


@post("/v1/embeddings/search", status_code=200, tags=["Embeddings"], summary="The nearest cached strings")
async def search_texts() -> ASGIApp:
    """Among those that this key's role (or the key itself, as configured) has had embedded, where texts are kept."""
    return TEXT_SEARCH  # type: ignore[return-value]
