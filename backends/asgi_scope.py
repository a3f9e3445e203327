"""What an ASGI scope says of a request, from the bytes of its head and the names of its connection's ends."""

import contextlib
import urllib.parse
from typing import Any

import httptools


def target_of(url: bytes) -> dict[str, Any]:
    """The keys of a scope that come from a request's target: a path, a proxy's absolute form, or `*`.

    Raises:
        httptools.HttpParserInvalidURLError: it is none of these.
    """
    path, _, query = url.partition(b"#")[0].partition(b"?")
    if not path.startswith(b"/"):
        parsed = httptools.parse_url(url)
        path, query = parsed.path or b"/", parsed.query or b""
    text = path.decode("ascii", "replace")
    return {
        "path": urllib.parse.unquote(text) if "%" in text else text,
        "raw_path": path,
        "query_string": query,
    }


def address_of(name: Any) -> tuple[str, int | None] | None:
    """ASGI's form of a socket's name; a Unix socket has its path, or nothing."""
    with contextlib.suppress(TypeError, IndexError):
        if isinstance(name, tuple):
            return str(name[0]), int(name[1])
        return (str(name), None) if name else None
    return None
