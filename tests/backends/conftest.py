"""Servers for the tests of our side of a connection, one per module; a test gets one with nothing left of the test before."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.asgi import Receive, Scope, Send, send_whole
from backends.asgi_http1 import HttpProtocol
from tests.backends.site import Site, serving


class Hasty(HttpProtocol):
    tick_s = 0.01
    head_s = 0.05
    stall_s = 0.1


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send_whole(send, 200, b"hello", {})


@pytest.fixture(scope="module", params=["tcp", "unix"])
async def long_lived_site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    unix: Path | None = tmp_path_factory.mktemp("site") / "socket" if request.param == "unix" else None
    async with serving(hello, unix=unix) as site:
        yield site


@pytest.fixture(scope="module")
async def long_lived_hasty_site() -> AsyncIterator[Site]:
    async with serving(hello, base=Hasty, timeout_keep_alive=0.05) as site:
        yield site


@pytest.fixture
async def site(long_lived_site: Site, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    async for calm in _calm(long_lived_site, caplog):
        yield calm


@pytest.fixture
async def hasty_site(long_lived_hasty_site: Site, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    """Its deadlines are a tenth of a second and less."""
    async for calm in _calm(long_lived_hasty_site, caplog):
        yield calm


async def _calm(site: Site, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Site]:
    site.reset(hello)
    with caplog.at_level(logging.WARNING):
        yield site
        await site.quiet()
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
