"""Tokens that a request may cost, before anybody has counted: a cheap bound first, an exact count only where it matters."""

import asyncio

from backends.encodings import EncodingMissing, Encodings

UPSTREAM_MAX_TOKENS = 1024
"""Held for an upstream's answer where neither the client nor the configuration names a maximum; more becomes a debt."""

DEFAULT_ENCODING = "o200k_base"


def upper_bound(body_bytes: int) -> int:
    """No tokeniser in use makes more tokens than bytes."""
    return body_bytes


async def closer_bound(body: bytes, encodings: Encodings) -> int:
    """Counted with tiktoken, off the event loop; where that is missing, the bytes again."""
    try:
        return await asyncio.to_thread(encodings.count, DEFAULT_ENCODING, body.decode("utf-8", "replace"))
    except EncodingMissing:
        return upper_bound(len(body))
