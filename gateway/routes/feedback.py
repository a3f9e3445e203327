"""POST /v1/feedback by the key that asked, /admin/feedback for any request: stars and words for an answer."""

import time
from typing import Annotated, Any

import msgspec
from litestar import Request, post

from gateway.auth import needs_key
from gateway.contents import as_text
from gateway.routes.answers import exchange_of, read_as, services_of
from policies.feedback import Said
from policies.ledger_sql import MICRO


class FeedbackFields(msgspec.Struct, forbid_unknown_fields=True):
    """`request_id` is the answer's `x-request-id`."""

    request_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    stars: Annotated[int, msgspec.Meta(ge=1, le=5)]
    text: Annotated[str, msgspec.Meta(max_length=4000)] = ""


@post("/v1/feedback", guards=[needs_key], status_code=200, tags=["Feedback"], summary="Rate an answer")
async def give_feedback(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Of one's own requests only. Said again, it replaces what was said before."""
    caller = exchange_of(request).caller
    assert caller is not None
    return await _say(request, key=caller.key_id)


@post("/admin/feedback", guards=[needs_key], status_code=200, tags=["Administration"], summary="Rate any answer")
async def give_any_feedback(request: Request[Any, Any, Any]) -> dict[str, Any]:
    """Said again, it replaces what was said before. `/admin/requests` shows it."""
    return await _say(request, key=None)


async def _say(request: Request[Any, Any, Any], *, key: str | None) -> dict[str, Any]:
    fields, house = await read_as(request, FeedbackFields), services_of(request).house
    now_s = time.time()
    await house.writer.attempt(adopt=False)  # the request may have ended a moment ago
    said = Said(fields.stars, as_text(fields.text.encode("utf-8", "replace")), int(now_s * MICRO))
    await house.feedbacks.say(fields.request_id, said, key=key)
    return {
        "object": "feedback",
        "request_id": fields.request_id,
        "stars": said.stars,
        "text": said.words,
        "created_at": int(now_s),
    }
