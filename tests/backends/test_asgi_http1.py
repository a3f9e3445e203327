"""A connection's life: requests in order, deadlines, clients that take nothing, and the server's end."""

import asyncio
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest

from backends.asgi import Receive, Scope, Send, read_body, send_json, send_whole
from backends.asgi_cycle import HIGH_WATER_BYTES, Headers
from backends.asgi_http1 import MAX_WAITING, HttpProtocol
from tests.backends.site import Site, chunked, post, request, serving

pytestmark = pytest.mark.anyio


async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_body(receive, limit_bytes=10**8)
    await send_json(send, 200, [scope["method"], scope["path"], body.decode()])


async def by_name(scope: Scope, receive: Receive, send: Send) -> None:
    await send_whole(send, 200, scope["raw_path"], {})


async def test_one_connection_serves_many_requests(site: Site) -> None:
    site.app = mirror
    async with site.client() as client:
        for number in range(100):
            await client.say(post(b"%d" % number, b"/%d" % number))
            answer = await client.answer()
            assert json.loads(answer.body) == ["POST", f"/{number}", str(number)]
            assert b"connection" not in answer.headers
    await site.quiet()
    assert len(site.connections) == 1


async def test_requests_that_were_pipelined_are_answered_one_after_another(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(f"begin {scope['path']}")
        if scope["path"] == "/0":
            await go_on.wait()
        await mirror(scope, receive, send)
        site.note(f"end {scope['path']}")

    site.app, go_on = app, asyncio.Event()
    async with site.client() as client:
        for number in range(3):
            await client.say(post(b"a" * number, b"/%d" % (2 * number)))
            await client.say(request(b"PUT /%d" % (2 * number + 1), b"transfer-encoding: chunked", body=chunked(b"b")))
        await site.until(lambda: site.arrived_bytes > 0)
        assert site.notes == ["begin /0"]
        go_on.set()
        got = [json.loads((await client.answer()).body) for _ in range(6)]
    assert got == [
        ["POST", "/0", ""],
        ["PUT", "/1", "b"],
        ["POST", "/2", "a"],
        ["PUT", "/3", "b"],
        ["POST", "/4", "aa"],
        ["PUT", "/5", "b"],
    ]
    await site.quiet()
    assert site.notes == [f"{what} /{number}" for number in range(6) for what in ("begin", "end")]


async def test_who_pipelines_too_many_gets_some_answered_and_an_end(site: Site) -> None:
    """The last answer says that it is the last, so the rest may be sent again. Each request is 20 bytes here, 3 KB there."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await by_name(scope, receive, send)

    site.app, go_on = app, asyncio.Event()
    async with site.client() as client:
        await client.say(request(b"GET /first"))
        await site.until(lambda: site.arrived_bytes > 0)
        await client.say(request(b"GET /") * 2000)
        await site.until(lambda: site.connections[0]._deaf)
        assert len(site.connections[0]._waiting) == MAX_WAITING
        go_on.set()
        answers = [await client.answer() for _ in range(MAX_WAITING + 1)]
        assert [answer.headers.get(b"connection") for answer in answers] == [None] * MAX_WAITING + [b"close"]
        assert await client.rest() == b""


async def test_reading_waits_while_requests_do(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await mirror(scope, receive, send)

    site.app, go_on = app, asyncio.Event()
    large = b"b" * 20_000_000
    async with site.client() as client:
        sending = asyncio.create_task(client.say(request(), post(large), request()))
        await site.until(lambda: site.arrived_bytes > 0)
        await site.until(lambda: not site.connections[0]._transport.is_reading())
        assert site.arrived_bytes < 4 * HIGH_WATER_BYTES
        go_on.set()
        await client.answer()
        assert len((await client.answer()).body) > len(large)
        await client.answer()
        await sending


@pytest.mark.parametrize("bad", [b"garbage\r\n\r\n", b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n"])
async def test_garbage_behind_requests_in_work_does_not_disturb_them(site: Site, bad: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await by_name(scope, receive, send)

    site.app, go_on = app, asyncio.Event()
    async with site.client() as client:
        await client.say(request(b"GET /1"), request(b"GET /2"))
        await site.until(lambda: site.arrived_bytes > 0)
        await client.say(bad)
        await client.say(b"x" * 100_000)
        go_on.set()
        assert (await client.answer()).body == b"/1"
        assert (await client.answer()).body == b"/2"
        rest = await client.rest()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400")


async def test_a_body_that_breaks_under_a_waiting_request_is_that_requests_alone(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(scope["path"])
        await go_on.wait()
        await by_name(scope, receive, send)

    site.app, go_on = app, asyncio.Event()
    broken = request(b"POST /2", b"transfer-encoding: chunked", body=b"zz\r\n")
    async with site.client() as client:
        await client.say(request(b"GET /1"), broken)
        await site.until(lambda: site.arrived_bytes > 0)
        go_on.set()
        assert (await client.answer()).body == b"/1"
        assert await client.rest() == b""
    await site.quiet()
    assert site.notes == ["/1"]


async def test_a_body_that_breaks_under_a_begun_answer_ends_it(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        site.note("half")
        site.note((await receive())["type"])

    site.app = app
    async with site.client() as client:
        await client.say(request(b"POST /", b"transfer-encoding: chunked"))
        await site.until(lambda: bool(site.notes))
        await client.say(b"zz\r\n")
        assert (await client.rest()).endswith(b"4\r\nhalf\r\n")
    await site.quiet()
    assert site.notes == ["half", "http.disconnect"]


async def test_a_body_that_breaks_after_its_answer_ends_the_connection(site: Site) -> None:
    async with site.client() as client:
        await client.say(request(b"POST /", b"transfer-encoding: chunked"))
        assert (await client.answer()).body == b"hello"
        await client.say(b"zz\r\n")
        assert await client.rest() == b""


async def test_an_application_knows_both_ends(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, [scope["server"], scope["client"], scope["scheme"], scope["state"]])

    site.app = app
    async with site.client() as client:
        await client.say(request())
        server, peer, scheme, state = json.loads((await client.answer()).body)
        name = site.listener.getsockname()
        assert server == (list(name) if isinstance(name, tuple) else [name, None])
        mine = client.writer.get_extra_info("sockname")
        assert peer == (list(mine) if mine else None)
        assert (scheme, state) == ("http", {})


async def test_nothing_of_a_request_outlives_it(site: Site) -> None:
    """Without the garbage collector: it runs rarely, and bodies are large."""
    scopes: list[Any] = []

    class Body(dict[str, Any]): ...

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(weakref.ref(scope["peer"]))
        await mirror(scope, receive, send)

    site.app = app
    gc.disable()
    try:
        async with site.client() as client:
            for _ in range(5):
                await client.say(post(b"hello"))
                await client.answer()
            await asyncio.sleep(0)
            assert [scope() for scope in scopes] == [None] * 5
        protocol = weakref.ref(site.connections[0])
        await site.quiet()
        site.connections.clear()
        await asyncio.sleep(0)
        assert protocol() is None
    finally:
        gc.enable()


async def test_descriptors_and_timers_do_not_pile_up(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await receive()
            await receive()
        else:
            await by_name(scope, receive, send)

    site.app = app
    before = None
    for _ in range(3):
        for say in (
            b"",
            b"GET",
            b"garbage\r\n\r\n",
            request(),
            request(b"GET /wait"),
            post(b"hello")[:-1],
            request() * 3,
        ):
            for polite in (True, False):
                async with site.client() as client:
                    await client.say(say)
                    await site.until(lambda say=say: site.arrived_bytes >= len(say))  # type: ignore[misc]
                    if polite:
                        client.writer.write_eof()
                        await client.rest()
                    else:
                        client.leave()
                await site.quiet()
                site.reset(app)
        before = before or _descriptors()
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# deadlines


async def test_an_idle_connection_is_closed(hasty_site: Site) -> None:
    async with hasty_site.client() as client:
        assert await client.rest() == b""
    async with hasty_site.client() as client:
        await client.say(request())
        assert (await client.answer()).body == b"hello"
        assert await client.rest() == b""


@pytest.mark.parametrize("begin", [b"G", b"GET / HTTP/1.1\r\nx: y", request() + b"G"])
async def test_a_head_that_does_not_arrive_in_time_is_told_so(hasty_site: Site, begin: bytes) -> None:
    async with hasty_site.client() as client:
        await client.say(begin)
        if begin.startswith(request()):
            assert (await client.answer()).status == 200
        answer = await client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (408, b"close")
        assert await client.rest() == b""


async def test_a_head_by_the_byte_gains_no_time(hasty_site: Site) -> None:
    async with hasty_site.client() as client:
        await client.say(b"GET / HTTP/1.1\r\nx: ")
        while not client.reader._buffer:  # type: ignore[attr-defined]
            await client.say(b"y")
            seen = hasty_site.ticks
            await hasty_site.until(lambda seen=seen: hasty_site.ticks > seen)  # type: ignore[misc]
        assert (await client.answer()).status == 408


async def test_an_application_may_take_its_time(hasty_site: Site) -> None:
    """The deadlines are for clients."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await hasty_site.until(lambda: hasty_site.ticks > 30)
        await send_whole(send, 200, b"at last", {})

    hasty_site.app = app
    async with hasty_site.client() as client:
        await client.say(request())
        assert (await client.answer()).body == b"at last"


ENDLESS = b"a" * 40_000_000
"""More than the system's buffers take."""


async def whole(send: Send) -> None:
    await send_whole(send, 200, ENDLESS, {})


async def in_pieces(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for start in range(0, len(ENDLESS), 65536):
        await send({"type": "http.response.body", "body": ENDLESS[start : start + 65536], "more_body": True})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("way", [whole, in_pieces])
@pytest.mark.parametrize(
    "says", [request(), request() + request(b"GET /next"), request(b"GET /", b"connection: close")]
)
async def test_a_client_that_takes_nothing_is_left(hasty_site: Site, way: Any, says: bytes) -> None:
    """Also where it goes on asking."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["peer"].on_gone(lambda: hasty_site.note("gone"))
        await way(send)

    hasty_site.app = app
    async with hasty_site.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(says)
        await hasty_site.until(lambda: bool(hasty_site.connections))
        await hasty_site.quiet()
        assert len(hasty_site.notes) == (way is in_pieces or b"/next" in says)


@pytest.mark.parametrize("way", [whole, in_pieces])
async def test_a_client_that_takes_little_is_waited_for(hasty_site: Site, way: Any) -> None:
    """Its answer takes many times what is allowed to one who takes nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await way(send)

    hasty_site.app = app
    async with hasty_site.client() as client:
        await client.say(request())
        await client.head()
        received = 0
        while received < 30_000_000:
            received += len(await client.reader.readexactly(1_500_000))
            seen = hasty_site.ticks
            await hasty_site.until(lambda seen=seen: hasty_site.ticks > seen)  # type: ignore[misc]
        assert hasty_site.ticks >= 20
        rest = await client.rest()
        assert received + len(rest) >= len(ENDLESS)


async def test_a_client_that_goes_on_sending_what_nobody_reads_is_left(hasty_site: Site) -> None:
    async with hasty_site.client() as client:
        await client.say(request(b"POST /", b"content-length: 1000000"))
        assert (await client.answer()).body == b"hello"
        assert await client.rest() == b""


async def test_a_refused_client_that_stays_is_left(hasty_site: Site) -> None:
    async with hasty_site.client() as client:
        await client.say(b"garbage\r\n\r\n")
        assert (await client.answer()).status == 400
        await hasty_site.quiet()


async def test_a_client_that_says_goodbye_and_takes_nothing_is_left(hasty_site: Site) -> None:
    """Its answer is small enough to wait in our own buffer, where nothing ever pauses."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["peer"].on_gone(lambda: hasty_site.note("gone"))
        transport = hasty_site.connections[0]._transport
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while transport.get_write_buffer_size() == 0:
            await send({"type": "http.response.body", "body": b"a" * 65536, "more_body": True})
        hasty_site.note("full")
        await receive()
        await receive()

    hasty_site.app = app
    async with hasty_site.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(request())
        await hasty_site.until(lambda: "full" in hasty_site.notes)
        client.writer.write_eof()
        await hasty_site.quiet()
    assert hasty_site.notes == ["full", "gone"]


# refusals


async def test_a_subclass_has_its_own_words_for_a_refusal() -> None:
    class Wordy(HttpProtocol):
        def refusal(self, status: int) -> tuple[bytes, Headers]:
            return b'{"status": %d}' % status, [(b"x-request-id", b"7")]

    async with serving(by_name, base=Wordy) as site, site.client() as client:
        await client.say(b"garbage\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.headers[b"x-request-id"]) == (b'{"status": 400}', b"7")
        assert answer.headers[b"content-type"] == b"application/json"


async def test_an_error_of_our_own_is_not_taken_for_the_clients() -> None:
    class Buggy(HttpProtocol):
        def head_begins(self) -> None:
            raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    handler = loop.get_exception_handler()
    async with serving(by_name, base=Buggy) as site, site.client() as client:
        loop.set_exception_handler(lambda _, context: errors.append(context))
        await client.say(request())
        assert await client.rest() == b""
        loop.set_exception_handler(handler)
    assert [type(error["exception"].__context__) for error in errors] == [ZeroDivisionError]


# the server's end


@pytest.mark.parametrize("say", [b"", b"GET / HTT", request(), post(b"x" * 10)[:-1]])
async def test_who_waits_for_nothing_is_sent_away_when_the_server_stops(say: bytes) -> None:
    async with serving(by_name) as site, site.client() as client:
        await client.say(say)
        await site.until(lambda: bool(site.connections) and site.arrived_bytes == len(say))
        if say.startswith((request(), b"POST")):
            await client.answer()
        site.server.should_exit = True
        assert await client.rest() == b""


async def test_a_request_in_work_is_finished_when_the_server_stops() -> None:
    """With a word that it was the last; one that waits behind it is not begun."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(scope["path"])
        await finish.wait()
        await by_name(scope, receive, send)

    finish = asyncio.Event()
    async with serving(app) as site, site.client() as client, site.client() as idle:
        await client.say(request(b"GET /1"), request(b"GET /2"))
        await site.until(lambda: bool(site.notes))
        site.server.should_exit = True
        assert await idle.rest() == b""
        finish.set()
        answer = await client.answer()
        assert (answer.body, answer.headers[b"connection"]) == (b"/1", b"close")
        assert await client.rest() == b""
    assert site.notes == ["/1"]


async def test_a_stream_is_finished_when_the_server_stops() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await finish.wait()
        await send({"type": "http.response.body", "body": b"two"})

    finish = asyncio.Event()
    async with serving(app) as site, site.client() as client, site.client() as idle:
        await client.say(request())
        await client.head()
        site.server.should_exit = True
        assert await idle.rest() == b""
        finish.set()
        assert await client.rest() == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_who_does_not_finish_in_time_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note("begun")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            site.note("cancelled")

    async with serving(app, timeout_graceful_shutdown=0) as site, site.client() as client:
        await client.say(request())
        await site.until(lambda: bool(site.notes))
        site.server.should_exit = True
        assert await client.rest() == b""
        await site.quiet()
    assert site.notes == ["begun", "cancelled"]
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_work_after_the_answer_that_is_cancelled_ends_no_connection() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await by_name(scope, receive, send)
        if scope["path"] == "/1":
            tasks.append(asyncio.current_task())
            await asyncio.get_running_loop().create_future()

    tasks: list[Any] = []
    async with serving(app) as site, site.client() as client:
        await client.say(request(b"GET /1"))
        await client.answer()
        tasks[0].cancel()
        await asyncio.wait(tasks)
        await client.say(request(b"GET /2"))
        assert (await client.answer()).body == b"/2"


async def test_uvicorn_counts_requests_and_sends_its_headers() -> None:
    async with serving(by_name, headers=[("x-server", "ours")]) as site:
        async with site.client() as client:
            await client.say(request())
            await client.answer()
            await client.say(request())
            assert (await client.answer()).headers[b"x-server"] == b"ours"
        assert site.server.server_state.total_requests == 2
