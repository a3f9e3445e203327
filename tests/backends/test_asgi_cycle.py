"""What an application may do with one request, and what its client then gets."""

import asyncio
from typing import Any

import pytest

from backends.asgi import ClientGone, Receive, Scope, Send, read_body, send_start, send_whole, until_gone
from backends.asgi_cycle import HIGH_WATER_BYTES
from tests.backends.site import Client, Site, chunked, post, request

pytestmark = pytest.mark.anyio

EXPECTS = b"Expect: 100-Continue"


async def start(send: Send, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def piece(send: Send, body: bytes, *, last: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    for body in (b"one", b"", b"two"):
        await piece(send, body)
    await piece(send, b"", last=True)


async def test_an_answer_of_unknown_length_comes_in_chunks(site: Site) -> None:
    site.app = streaming
    async with site.client() as client:
        for _ in range(3):
            await client.say(request())
            answer = await client.answer()
            assert (answer.body, answer.headers[b"transfer-encoding"]) == (b"onetwo", b"chunked")


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"6")]])
@pytest.mark.parametrize("lines", [[], [b"connection: keep-alive"]])
async def test_http_1_0_gets_bytes_and_an_end(
    site: Site, headers: list[tuple[bytes, bytes]], lines: list[bytes]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(scope["http_version"])
        await start(send, 200, *headers)
        await piece(send, b"one")
        await piece(send, b"two", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request(b"GET /", *lines, version=b"1.0"))
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert body == b"onetwo"
        assert b"connection: close" in head
        assert b"chunked" not in head
    assert site.notes == ["1.0"]


@pytest.mark.parametrize("version", [b"0.9", b"2.0"])
async def test_who_speaks_another_version_is_not_sent_chunks(site: Site, version: bytes) -> None:
    site.app = streaming
    async with site.client() as client:
        await client.say(request(b"GET /", b"connection: keep-alive", version=version))
        assert (await client.rest()).endswith(b"\r\n\r\nonetwo")


@pytest.mark.parametrize("length", [True, False])
async def test_head_gets_the_head_and_no_body(site: Site, length: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, *[(b"content-length", b"5")][:length])
        await piece(send, b"he")
        await piece(send, b"llo", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request(b"HEAD /"), request(b"GET /"))
        answer = await client.answer(bodiless=True)
        assert (b"content-length" in answer.headers) == length
        assert b"transfer-encoding" not in answer.headers
        assert (await client.answer()).body == b"hello"


@pytest.mark.parametrize(("status", "headers"), [(204, []), (304, [(b"content-length", b"500")]), (304, [])])
async def test_answers_without_a_body(site: Site, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, status, *headers)
        await piece(send, b"", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request(), request())
        for _ in range(2):
            answer = await client.answer()
            assert answer.status == status
            assert b"transfer-encoding" not in answer.headers


@pytest.mark.parametrize("value", [b"close", b"Close", b"keep-alive, close"])
async def test_an_application_may_end_the_connection(site: Site, value: bytes) -> None:
    """A request that had come already is not begun: its client will send it again."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(scope["path"])
        await send_whole(send, 200, b"bye", {"connection": value.decode()})

    site.app = app
    async with site.client() as client:
        await client.say(request(b"GET /1"), request(b"GET /2"))
        assert (await client.answer()).headers[b"connection"] == value
        assert await client.rest() == b""
    assert site.notes == ["/1"]


async def test_a_request_behind_one_that_ended_the_connection_early_is_not_begun(site: Site) -> None:
    """Its body's end and the next request come in one read."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(scope["path"])
        await send_whole(send, 413, b"no", {"connection": "close"})

    site.app = app
    head, body = post(b"hello", b"/1")[:-5], b"hello"
    async with site.client() as client:
        await client.say(head)
        assert (await client.answer()).status == 413
        await client.say(body + request(b"GET /2"))
        assert await client.rest() == b""
    assert site.notes == ["/1"]


async def test_a_client_that_expects_a_word_gets_one_when_its_body_is_wanted(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_whole(send, 200, await read_body(receive, limit_bytes=100), {})

    site.app = app
    whole = post(b"hello", b"/", EXPECTS)
    async with site.client() as client:
        await client.say(whole[:-5])
        assert await client.line() + await client.line() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.say(whole[-5:])
        assert (await client.answer()).body == b"hello"
        await client.say(whole)  # it did not wait
        assert (await client.answer()).body == b"hello"
        await client.say(post(b"", b"/", EXPECTS))
        assert (await client.answer()).body == b""
        await client.say(request(b"POST /", b"content-length: 5", EXPECTS, body=b"hello", version=b"1.0"))
        assert (await client.answer()).body == b"hello"


@pytest.mark.parametrize("reads_late", [True, False])
async def test_a_word_is_never_written_into_an_answer(site: Site, reads_late: bool) -> None:
    """Whether its body follows now is the client's choice, so what comes next cannot be told from it: the connection ends."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 413, (b"content-length", b"5"))
        await piece(send, b"no")
        if reads_late:
            await asyncio.wait(
                [asyncio.ensure_future(receive()), asyncio.ensure_future(pause.wait())], return_when="FIRST_COMPLETED"
            )
        await piece(send, b"way", last=True)

    site.app = app
    pause = asyncio.Event()
    async with site.client() as client:
        await client.say(post(b"hello", b"/", EXPECTS)[:-5])
        status, headers = await client.head()
        assert (status, headers[b"connection"]) == (413, b"close")
        pause.set()
        await client.say(request(b"GET /stolen"))
        assert await client.rest() == b"noway"


async def test_an_answer_may_come_before_its_requests_body(site: Site) -> None:
    """The client gets all of it while it goes on sending, and the connection serves the next request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        site.note(scope["path"])
        if scope["path"] == "/large":
            await send_whole(send, 413, b"too large", {})
            assert (await receive())["type"] == "http.disconnect"
        else:
            await send_whole(send, 200, b"fine", {})

    site.app = app
    body = b"b" * 5_000_000
    whole = post(body, b"/large")
    async with site.client() as client:
        await client.say(whole[:1000])
        answer = asyncio.create_task(client.answer())
        await client.say(whole[1000:], request(b"GET /next"))
        assert (await answer).body == b"too large"
        assert (await client.answer()).body == b"fine"
    assert site.notes == ["/large", "/next"]


async def test_an_early_answer_that_ends_the_connection_reaches_a_client_that_goes_on_sending(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_whole(send, 413, b"too large", {"connection": "close"})

    site.app = app
    whole = post(b"b" * 5_000_000)
    async with site.client() as client:
        await client.say(whole)
        assert (await client.answer()).body == b"too large"
        assert await client.rest() == b""


async def test_a_body_that_nobody_reads_waits_outside(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        peers.append(scope["peer"])
        site.note("begun")
        await read_on.wait()
        body = await read_body(receive, limit_bytes=10**8)
        assert not (await asyncio.wait_for(ended(receive), 5))
        await send_whole(send, 200, b"%d" % len(body), {})

    async def ended(receive: Receive) -> bool:
        receiving = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        return not receiving.cancel()

    peers: list[Any] = []
    site.app, read_on = app, asyncio.Event()
    async with site.client() as client:
        sending = asyncio.create_task(
            client.say(request(b"POST /", b"transfer-encoding: chunked"), *[b"2\r\nab\r\n"] * 1_000_000)
        )
        await site.until(lambda: bool(site.notes))
        await site.until(lambda: not site.connections[0]._transport.is_reading())
        assert peers[0]._buffered <= 3 * HIGH_WATER_BYTES * 64 / 7
        assert sum(map(len, peers[0]._pieces)) < HIGH_WATER_BYTES
        assert not peers[0].body_arrived
        read_on.set()
        await sending
        await client.say(b"0\r\n\r\n")
        assert (await client.answer()).body == b"2000000"


async def test_two_may_wait_for_a_body_and_one_may_give_up(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        first, second = asyncio.ensure_future(receive()), asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        site.note("waiting")
        message = await second
        await send_whole(send, 200, message["body"], {})

    site.app = app
    whole = post(b"hello")
    async with site.client() as client:
        await client.say(whole[:-5])
        await site.until(lambda: bool(site.notes))
        await client.say(whole[-5:])
        assert (await client.answer()).body == b"hello"


async def test_a_sender_that_gives_up_does_not_take_others_with_it(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        first = asyncio.ensure_future(piece(send, b"a" * 20_000_000))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(piece(send, b"never"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        site.note("gave up")
        await first
        await piece(send, b"b", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request())
        await site.until(lambda: bool(site.notes))
        assert (await client.answer()).body == b"a" * 20_000_000 + b"b"


async def test_a_client_that_stops_reading_stops_the_application(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        for _ in range(200):
            await piece(send, b"a" * 65536)
            site.notes.append("sent")
        await piece(send, b"", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request())
        await site.until(lambda: bool(site.connections) and site.connections[0].writable is not None)
        assert len(site.notes) < 200
        assert site.connections[0]._transport.get_write_buffer_size() <= HIGH_WATER_BYTES + 65536 + 10
        assert len((await client.answer()).body) == 200 * 65536


def watching(site: Site, *, body_first: bool = True, streams: bool = False) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope["peer"]
        peer.on_gone(lambda: site.note("gone"))
        assert not peer.gone
        if body_first:
            await receive()
        if streams:
            await start(send)
            await piece(send, b"first")
        site.note("ready")
        assert (await receive())["type"] == "http.disconnect"
        assert peer.gone
        assert (await receive())["type"] == "http.disconnect"
        await start(send)  # silent
        await piece(send, b"nobody hears", last=True)
        peer.on_gone(None)
        peer.on_gone(lambda: site.note("told late"))
        site.note("done")

    return app


async def test_who_leaves_behind_a_pipelined_request_is_missed_all_the_same(site: Site) -> None:
    """Reading is paused then, so the end of the connection does not arrive by itself."""
    site.app = watching(site)
    async with site.client() as client:
        await client.say(request(), request())
        await site.until(lambda: "ready" in site.notes)
        client.leave()
        await site.until(lambda: "done" in site.notes)
    assert site.notes.count("gone") == 1


async def leaves_by_reset(client: Client) -> None:
    client.leave()


async def leaves_by_eof(client: Client) -> None:
    client.writer.write_eof()
    assert b"nobody hears" not in await client.rest()


@pytest.mark.parametrize("leaves", [leaves_by_reset, leaves_by_eof])
@pytest.mark.parametrize(
    ("say", "options"),
    [
        (request(), {}),
        (request(), {"streams": True}),
        (post(b"hello")[:-2], {"body_first": False}),
        (post(b"hello")[:-2], {"streams": True}),
        (request(b"GET /0") + request(b"GET /1"), {"streams": True}),
    ],
)
async def test_an_application_learns_once_that_its_client_has_left(
    site: Site, leaves: Any, say: bytes, options: dict[str, Any]
) -> None:
    """Of two requests that were pipelined, the second is watched no less."""
    watched = watching(site, **options)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (streaming if scope["path"] == "/0" else watched)(scope, receive, send)

    site.app = app
    async with site.client() as client:
        if options.get("body_first", True) or b"POST" not in say:
            await client.say(say)
        else:
            await client.say(say[:-3])
            await site.until(lambda: site.arrived_bytes > 0)
        await site.until(lambda: "ready" in site.notes)
        await leaves(client)
        await site.until(lambda: "done" in site.notes)
    await site.quiet()
    assert site.notes == ["ready", "gone", "told late", "done"]


async def test_work_is_cancelled_when_the_client_leaves(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            site.note("at work")
            await asyncio.get_running_loop().create_future()

        site.note(await until_gone(scope, work()))

    site.app = app
    async with site.client() as client:
        await client.say(request())
        await site.until(lambda: bool(site.notes))
        client.leave()
        await site.until(lambda: site.notes == ["at work", False])


async def test_who_leaves_in_the_middle_of_a_body_is_gone(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await read_body(receive, limit_bytes=1000)
        except ClientGone:
            site.note("gone")

    site.app = app
    async with site.client() as client:
        await client.say(post(b"hello")[:-2])
        await site.until(lambda: site.arrived_bytes > 0)
        client.leave()
        await site.until(lambda: bool(site.notes))


async def test_leaving_after_the_end_of_the_answer_is_nobodys_business(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["peer"].on_gone(lambda: site.note("gone"))
        await send_whole(send, 200, b"hello", {})
        assert (await receive())["type"] == "http.disconnect"
        await more_to_do.wait()
        site.note(scope["peer"].gone)

    site.app, more_to_do = app, asyncio.Event()
    async with site.client() as client:
        await client.say(request())
        await client.answer()
        client.leave()
        await site.until(lambda: not site.server.server_state.connections)
        more_to_do.set()
    await site.quiet()
    assert site.notes == [False]


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("application error")


async def fails_after_the_start(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send, 200, (b"content-length", b"10"))
    await piece(send, b"half")
    raise ValueError("application error")


async def says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def stops_half_way(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await piece(send, b"half")


async def sends_too_little(scope: Scope, receive: Receive, send: Send) -> None:
    await send_whole(send, 200, b"half", {"content-length": "10"})


async def sends_too_much(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send, 200, (b"content-length", b"4"))
    await piece(send, b"half")
    await piece(send, b"and half again", last=True)


async def sends_a_body_with_204(scope: Scope, receive: Receive, send: Send) -> None:
    await send_whole(send, 204, b"surprise", {})


async def begins_twice(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await start(send)


async def begins_with_a_body(scope: Scope, receive: Receive, send: Send) -> None:
    await piece(send, b"body")


async def splits_its_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send_start(send, 200, {"x": "a\r\nset-cookie: stolen=1"})
    await piece(send, b"", last=True)


async def splits_by_name(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send, 200, (b"x\nset-cookie", b"stolen=1"))


async def has_an_unheard_of_status(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send, 1000)


async def has_a_nonsense_length(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send, 200, (b"content-length", b"much"))


@pytest.mark.parametrize(
    "app",
    [
        *(fails, fails_after_the_start, says_nothing, stops_half_way, sends_too_little, sends_too_much),
        *(sends_a_body_with_204, begins_twice, begins_with_a_body, splits_its_answer, splits_by_name),
        *(has_an_unheard_of_status, has_a_nonsense_length),
    ],
)
async def test_an_application_that_fails_ends_its_connection_and_is_logged(
    site: Site, app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What had been answered before reaches its client whole."""
    before = b"b" * 3_000_000

    async def good_then_bad(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/good":
            await send_whole(send, 200, before, {})
        else:
            await app(scope, receive, send)

    site.app = good_then_bad
    async with site.client() as client:
        await client.say(request(b"GET /good"), request(b"GET /bad"))
        assert (await client.answer()).body == before
        rest = await client.rest()
        assert not rest.endswith(b"0\r\n\r\n") or rest.endswith(b"length: 10\r\n\r\n")
        assert b"stolen" not in rest
    await site.quiet()
    assert [record.getMessage() for record in caplog.records] == ["the application failed to answer /bad"]
    async with site.client() as client:
        await client.say(request(b"GET /good"))
        assert (await client.answer()).status == 200


async def test_an_application_may_think_better_of_a_start_that_was_refused(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(RuntimeError, match="line end"):
            await splits_its_answer(scope, receive, send)
        await send_whole(send, 500, b"sorry", {})

    site.app = app
    async with site.client() as client:
        await client.say(request())
        answer = await client.answer()
        assert (answer.status, answer.body) == (500, b"sorry")


async def test_what_an_application_says_after_the_end_is_its_own_error(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection has gone on to the next request, which is served."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_whole(send, 200, scope["raw_path"], {})
        if scope["path"] == "/talker":
            await piece(send, b"and another thing", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request(b"GET /talker"), request(b"GET /next"))
        assert (await client.answer()).body == b"/talker"
        assert (await client.answer()).body == b"/next"
        await client.say(request(b"GET /next"))
        assert (await client.answer()).body == b"/next"
    assert [record.getMessage() for record in caplog.records] == ["the application failed to answer /talker"]


async def test_an_application_may_announce_chunks_itself(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, 200, (b"transfer-encoding", b"chunked"))
        await piece(send, b"hello", last=True)

    site.app = app
    async with site.client() as client:
        await client.say(request(b"POST /", b"transfer-encoding: chunked", body=chunked(b"x")))
        assert (await client.answer()).body == b"hello"


async def test_keep_alive_in_an_application_does_not_hide_a_close(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_whole(send, 200, b"", {"x-connection": "keep-alive"})

    site.app = app
    async with site.client() as client:
        await client.say(request(b"GET /", b"connection: close"))
        assert (await client.answer()).headers[b"connection"] == b"close"
        assert await client.rest() == b""


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    await scope["peer"].send_whole(201, {"x-a": "é", "x-b": "c"}, b"hello")


@pytest.mark.parametrize(
    ("method", "lines", "version", "goes_on"),
    [
        (b"GET /", [], b"1.1", True),
        (b"HEAD /", [], b"1.1", True),
        (b"GET /", [b"connection: close"], b"1.1", False),
        (b"GET /", [], b"1.0", False),
    ],
)
async def test_an_answer_in_one_piece_is_as_by_send(
    site: Site, method: bytes, lines: list[bytes], version: bytes, goes_on: bool
) -> None:
    site.app = whole
    async with site.client() as client:
        await client.say(request(method, *lines, version=version))
        answer = await client.answer(bodiless=method.startswith(b"HEAD"))
        assert (answer.status, answer.headers[b"content-length"], answer.headers[b"x-a"]) == (201, b"5", b"\xe9")
        assert answer.body == (b"" if method.startswith(b"HEAD") else b"hello")
        assert b"date" in answer.headers or b"x-server" in answer.headers
        if goes_on:
            await client.say(request())
            assert (await client.answer()).body == b"hello"
        else:
            assert answer.headers[b"connection"] == b"close"
            assert await client.rest() == b""


async def test_an_answer_in_one_piece_cannot_bring_lines_of_its_own(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["peer"].send_whole(200, {"x-a": "b\r\nset-cookie: c"}, b"hello")

    site.app = app
    async with site.client() as client:
        await client.say(request())
        assert b"set-cookie" not in await client.rest()
    assert "line end" in caplog.text


async def test_an_answer_in_one_piece_before_the_body_has_come(site: Site) -> None:
    site.app = whole
    async with site.client() as client:
        await client.say(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhe")
        assert (await client.answer()).body == b"hello"
        await client.say(b"llo", request())
        assert (await client.answer()).body == b"hello"
