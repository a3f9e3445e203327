"""Whom a request is for and what for, in the client's own words; only the ledger gets to know."""

from typing import Any

from backends.wire import Body
from gateway.contents import as_text
from gateway.exchange import Exchange

MAX_USER_CHARS = 128
MAX_TAGS = 16
MAX_TAG_CHARS = 64


def attribute(exchange: Exchange, body: Body) -> None:
    """`user` (or `safety_identifier`, as OpenAI calls it now), and `metadata.tags`: a list, or words with commas between them.

    Neither is ever a reason to refuse a request: that is for the backend to judge.
    """
    for name in ("user", "safety_identifier"):
        value: Any = body.read(name, Any) if name in body else None
        if not exchange.user and isinstance(value, str):
            exchange.user = plain(value, MAX_USER_CHARS)
    metadata: Any = body.read("metadata", Any) if "metadata" in body else None
    if isinstance(metadata, dict):
        exchange.tags = tags_of(metadata.get("tags"))


def tags_of(given: Any) -> tuple[str, ...]:
    words = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    tags = dict.fromkeys(plain(word.strip(), MAX_TAG_CHARS) for word in words if isinstance(word, str) and word.strip())
    return tuple(tags)[:MAX_TAGS]


def plain(words: str, length: int) -> str:
    """What a database takes, and no longer than this."""
    return as_text(words[:length].encode("utf-8", "replace"))
