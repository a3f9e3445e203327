"""Lists under /v1: cursor pages as OpenAI's."""

from typing import Annotated, Literal

from litestar.params import FromQuery, QueryParameter

from retrieval.catalog import Page

Limit = Annotated[int, QueryParameter(ge=1, le=100)]
FileLimit = Annotated[int, QueryParameter(ge=1, le=10_000)]
Order = Annotated[Literal["asc", "desc"], QueryParameter()]
Cursor = FromQuery[str | None]


def asked_page(limit: int, order: str, after: str | None, before: str | None) -> Page:
    after, before = (None if one is None else one.replace("\0", "") for one in (after, before))
    return Page(limit, after, before, ascending=order == "asc")
