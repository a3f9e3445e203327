"""Lists under /admin: pages by the last id seen."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from litestar.params import QueryParameter

Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Order = Literal["asc", "desc"]
Status = Annotated[int | None, QueryParameter(ge=0, le=999)]
Time = Annotated[float | None, QueryParameter(ge=0, le=253_402_300_799)]
"""Unix seconds until the end of the year 9999."""


def page(found: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """
    Args:
        found: one more than `limit`, if there is one.
    """
    data = list(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
