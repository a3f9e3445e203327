"""Targets and addresses as an ASGI application knows them."""

from typing import Any

import httptools
import pytest

from backends.asgi_scope import address_of, target_of


@pytest.mark.parametrize(
    ("url", "path", "raw_path", "query"),
    [
        (b"/", "/", b"/", b""),
        (b"/a%20b?c%20d", "/a b", b"/a%20b", b"c%20d"),
        (b"/%C3%A9%FF%zz%", "/é\ufffd%zz%", b"/%C3%A9%FF%zz%", b""),
        (b"/%2e%2E/%2F?", "/..//", b"/%2e%2E/%2F", b""),
        (b"/a?b?c#d", "/a", b"/a", b"b?c"),
        (b"/a#b?c", "/a", b"/a", b""),
        (b"//host/a", "//host/a", b"//host/a", b""),
        (b"http://host:80/a%41?b#c", "/aA", b"/a%41", b"b"),
        (b"http://host", "/", b"/", b""),
        (b"http://host?a", "/", b"/", b"a"),
        (b"*", "*", b"*", b""),
        (b"/\xc3\xa9", "/\ufffd\ufffd", b"/\xc3\xa9", b""),
    ],
)
def test_targets(url: bytes, path: str, raw_path: bytes, query: bytes) -> None:
    assert target_of(url) == {"path": path, "raw_path": raw_path, "query_string": query}


@pytest.mark.parametrize("url", [b"", b"host:443", b"nowhere", b"http://", b"http://h:99999/"])
def test_what_is_no_target(url: bytes) -> None:
    with pytest.raises(httptools.HttpParserInvalidURLError):
        target_of(url)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (("::1", 80, 0, 0), ("::1", 80)),
        (("127.0.0.1", 80), ("127.0.0.1", 80)),
        ("/run/socket", ("/run/socket", None)),
        ("", None),
        (None, None),
        ((), None),
    ],
)
def test_addresses(name: Any, address: Any) -> None:
    assert address_of(name) == address
