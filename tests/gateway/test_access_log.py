"""One line per request, written many at a time."""

import asyncio

import pytest

from backends.wire import Usage
from gateway.access_log import AccessLog, line_of
from gateway.exchange import Exchange

pytestmark = pytest.mark.anyio


def exchange(path: str = "/v1/x", **fields: object) -> Exchange:
    made = Exchange("req_1", path, 0.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


async def test_lines_are_written_together_soon_and_at_the_end() -> None:
    texts: list[str] = []
    written = asyncio.Event()

    def write(text: str) -> None:
        texts.append(text)
        written.set()

    log = AccessLog(write, clock=lambda: 0.0)
    for _ in range(3):
        log.add("GET", exchange(), 200, 0.0123)
    assert texts == []
    async with asyncio.timeout(5):
        await written.wait()
    assert [len(text.splitlines()) for text in texts] == [3]
    assert texts[0].splitlines()[0].endswith("INFO    chasqui.access GET /v1/x 200 req_1 12ms")
    log.add("GET", exchange(), 200, 0.0)
    log.flush()
    log.flush()
    assert len(texts) == 2


async def test_what_machines_ask_all_the_time_is_not_worth_a_line() -> None:
    texts: list[str] = []
    log = AccessLog(texts.append)
    for path in ("/health", "/health/ready", "/metrics"):
        log.add("GET", exchange(path), 200, 0.0)
    log.flush()
    assert texts == []


async def test_a_line_says_who_what_where_and_how_it_ended() -> None:
    line = line_of(
        "POST", exchange(backend="up", model="m", usage=Usage(3, 4), outcome="broken", error="upstream_error"), 200, 1
    )
    assert line == "POST /v1/x 200 req_1 1000ms model=m backend=up tokens=3+4 broken error=upstream_error"


@pytest.mark.parametrize("path", ["/a\nb", "/\x1b[31m", "/ü\u2028", "/" + "x" * 1000])
async def test_a_path_cannot_write_lines_of_its_own(path: str) -> None:
    line = line_of("GET", exchange(path), 404, 0.0)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 300
