"""GET /v1/retrievals/{id}: what was found for an answer, for clients that cannot show citations."""

from typing import Any

from litestar import Request, get
from litestar.params import FromPath

from gateway.auth import needs_key
from gateway.routes.answers import services_of
from gateway.routes.files import caller_of


@get(
    "/v1/retrievals/{retrieval_id:str}",
    guards=[needs_key],
    tags=["Vector stores"],
    summary="What was found for an answer",
)
async def get_retrieval(request: Request[Any, Any, Any], retrieval_id: FromPath[str]) -> dict[str, Any]:
    """The id is the answer's `x-chasqui-retrieval`. For the role that asked, as long as it may read the documents; kept for a week.
    What has been deleted since is not in it."""
    return await services_of(request).retrieving.recall(caller_of(request), retrieval_id)
