"""What arrives becomes requests: the same ones however it is cut, nobody else's bytes among them, and nothing without end."""

import asyncio
import itertools
import json
import string
from collections.abc import Sequence

import httptools
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backends.asgi import Receive, Scope, Send, send_whole
from backends.asgi_reader import MAX_HEAD_BYTES, Reader
from tests.backends.site import Client, Site, chunked, post, request, serving

pytestmark = pytest.mark.anyio

relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

H2C = (
    b"Connection: Upgrade, HTTP2-Settings",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)
CHUNKED = b"Transfer-Encoding: chunked"
LAST = request(b"GET /last", b"Connection: close")


def echo(site: Site) -> object:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        site.seen.append(({name: scope[name] for name in ECHOED}, body))
        await send_whole(send, 200, json.dumps([scope["method"], scope["path"], body.decode("latin-1")]).encode(), {})

    return app


ECHOED = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")


async def say_in_pieces(site: Site, client: Client, recorded: bytes, cuts: Sequence[int]) -> None:
    """Each piece is read by the server before the next is sent."""
    edges = [0, *sorted(set(cuts) - {0, len(recorded)}), len(recorded)]
    for start, end in itertools.pairwise(edges):
        await client.say(recorded[start:end])
        await site.until(lambda end=end: site.arrived_bytes >= end or client.reader.at_eof())  # type: ignore[misc]


async def play(site: Site, recorded: bytes, cuts: Sequence[int] = ()) -> tuple[list[object], bytes]:
    site.reset(echo(site))  # type: ignore[arg-type]
    async with site.client() as client:
        await say_in_pieces(site, client, recorded, cuts)
        answers = await client.rest()
    await site.quiet()
    return list(site.seen), b"\r\n".join(line for line in answers.split(b"\r\n") if not line.startswith(b"date:"))


RECORDED = b"".join(
    [
        post(b"one", b"/1?a=b&c=%20#nothing", b"X-Empty:", b"X-Twice: 1", b"x-twice: 2"),
        request(b"GET /%C3%A9%2F%zz?%C3%A9"),
        request(b"POST /3", CHUNKED, body=chunked(b"tw", b"o!", trailers=b"X-Trailer: 1\r\nhost: elsewhere\r\n")),
        request(b"HEAD /4"),
        request(b"GET /5", *H2C),
        post(b"java", b"/6", *H2C),
        request(b"POST /7", *H2C, CHUNKED, body=chunked(b"ja", b"va", trailers=b"x: y\r\n")),
        b"\r\n",
        request(b"GET http://elsewhere:80/8?q"),
        post(b"", b"/9", *H2C),
        request(b"OPTIONS *"),
        post(b"GET /stolen HTTP/1.1\r\n\r\n", b"/10", b"expect: 100-continue"),
        LAST,
    ]
)


async def test_a_recorded_sequence_is_understood(site: Site) -> None:
    seen, answers = await play(site, RECORDED)
    assert [(scope["method"], scope["raw_path"], scope["query_string"], body) for scope, body in seen] == [  # type: ignore[misc, index]
        ("POST", b"/1", b"a=b&c=%20", b"one"),
        ("GET", b"/%C3%A9%2F%zz", b"%C3%A9", b""),
        ("POST", b"/3", b"", b"two!"),
        ("HEAD", b"/4", b"", b""),
        ("GET", b"/5", b"", b""),
        ("POST", b"/6", b"", b"java"),
        ("POST", b"/7", b"", b"java"),
        ("GET", b"/8", b"q", b""),
        ("POST", b"/9", b"", b""),
        ("OPTIONS", b"*", b"", b""),
        ("POST", b"/10", b"", b"GET /stolen HTTP/1.1\r\n\r\n"),
        ("GET", b"/last", b"", b""),
    ]
    scopes = [scope for scope, _ in seen]  # type: ignore[misc]
    assert scopes[1]["path"] == "/é/%zz"  # type: ignore[index]
    assert scopes[0]["headers"] == [  # type: ignore[index]
        (b"host", b"here"),
        (b"content-length", b"3"),
        (b"x-empty", b""),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
    ]
    assert scopes[2]["headers"] == [(b"host", b"here"), (b"transfer-encoding", b"chunked")]  # type: ignore[index]
    assert answers.count(b"HTTP/1.1 200") == 12
    assert answers.count(b"connection: close") == 1


@relaxed
@given(cuts=st.lists(st.integers(1, len(RECORDED) - 1), max_size=20))
@example(cuts=list(range(len(RECORDED))))
async def test_it_does_not_matter_how_requests_are_cut(site: Site, cuts: list[int]) -> None:
    seen, answers = await play(site, RECORDED)
    seen_in_pieces, answers_in_pieces = await play(site, RECORDED, cuts)
    assert seen_in_pieces == seen
    # who has sent a body in part is not asked to go on
    assert answers_in_pieces.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == answers


# Left out is what uvicorn drops: what comes behind an offer to upgrade in one read.
PLAIN = [
    post(b"one", b"/1?a=b"),
    request(b"GET /%41//b/../c;d=e?f?g"),
    request(b"POST /3", CHUNKED, body=chunked(b"a", b"b")),  # its trailers would become headers there
    request(b"HEAD /4"),
    request(b"GET //double/slash"),
    request(b"DELETE /x#fragment?not-a-query"),
    request(b"GET http://elsewhere/p?q=1"),
    request(b"OPTIONS *"),
    request(b"GET /6", b"cookie: a=b", b"cookie: c=d", "x: é".encode()),
]
ENDS = [
    request(b"GET /old", version=b"1.0"),
    request(b"GET /old", b"connection: keep-alive", version=b"1.0"),
    LAST,
    request(b"GET /last", b"Connection: Keep-Alive, Close"),
    LAST + request(b"GET /too-late"),
]


async def test_uvicorns_own_protocol_understands_the_same() -> None:
    async with serving(echo) as ours, serving(echo, base=_uvicorns()) as theirs:  # type: ignore[arg-type]
        for middle, end in itertools.product([[], *([one] for one in PLAIN), PLAIN[:9]], ENDS):
            recorded = b"".join([*middle, end])
            assert await play(ours, recorded) == await play(theirs, recorded), recorded


def _uvicorns() -> type[asyncio.Protocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Theirs(HttpToolsProtocol):
        def _tick(self) -> None: ...

    return Theirs


BROKEN = [
    b"garbage\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    request(b"GET nowhere"),
    request(b"GET /\xc3\xa9"),
    request(b"GET /?\xff"),
    request(b"GET /a b"),
    request(b"GET http://"),
    request(b"GET http://h:99999/"),
    request(b"CONNECT elsewhere:443"),
    request(b"GET /", version=b"1.2"),
    request(b"GET /", b"x: \x00"),
    request(b"GET /", b"x : y"),
    request(b"GET /", b": y"),
    request(b"GET /", b"x: y\r\n folded"),
    request(b"GET /", b"x: y\rz: w"),
    b"GET / HTTP/1.1\nhost: here\n\n",
    *(
        request(b"POST /", b"content-length: " + length, body=b"hello")
        for length in (b"-1", b"+5", b"5,5", b"0x5", b"", b"5 5", b"1" * 30, b"five")
    ),
    request(b"POST /", b"content-length: 5", b"content-length: 5", body=b"hello"),
    request(b"POST /", b"content-length: 5", b"content-length: 6", body=b"hello"),
    request(b"POST /", b"content-length: 5", CHUNKED, body=chunked(b"hello")),
    request(b"POST /", CHUNKED, b"content-length: 5", body=chunked(b"hello")),
    request(b"POST /", CHUNKED, b"transfer-encoding: identity", body=chunked(b"hello")),
    request(b"POST /", b"transfer-encoding: xchunked", body=chunked(b"hello")),
    request(b"POST /", CHUNKED, body=b"-5\r\nhello\r\n0\r\n\r\n"),
    request(b"POST /", CHUNKED, body=b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    request(b"POST /", CHUNKED, body=b"5\r\nhello0\r\n\r\n"),
    request(b"POST /", CHUNKED, body=b"5\nhello\n0\n\n"),
    request(b"POST /", CHUNKED, body=chunked(b"hello", trailers=b"content-length: 3\r\n")),
    request(b"POST /", *H2C, CHUNKED, body=b"zz\r\n"),
]


@pytest.mark.parametrize("bad", BROKEN)
async def test_what_is_no_request_is_told_so_once_and_the_connection_ends(site: Site, bad: bytes) -> None:
    seen, answers = await play(site, bad)
    assert answers.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answers
    assert answers.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answers
    assert not [body for _, body in seen if b"hello" in body]  # type: ignore[misc]


@pytest.mark.parametrize("bad", BROKEN)
async def test_what_is_whole_before_garbage_is_answered(site: Site, bad: bytes) -> None:
    seen, answers = await play(site, post(b"one", b"/1") + request(b"GET /2") + bad)
    assert [body for _, body in seen][:2] == [b"one", b""]  # type: ignore[misc]
    assert answers.startswith(b"HTTP/1.1 200")
    assert answers.count(b"HTTP/1.1 200") == 2


words = st.sampled_from(
    [
        *(b"\r\n", b"\r", b"\n", b"0\r\n\r\n", b":", b" ", b"\x00", b"\xff", b"*", b"5\r\n", b";" * 50, b"HTTP/1.0"),
        *(
            b"content-length: 5\r\n",
            b"transfer-encoding: chunked\r\n",
            b"connection: close\r\n",
            b"http://",
            b"CONNECT ",
        ),
        *(b"connection: upgrade\r\nupgrade: x\r\n", b"GET /x HTTP/1.1\r\n\r\n", b"expect: 100-continue\r\n"),
    ]
)


@relaxed
@given(st.lists(st.tuples(st.integers(0, len(RECORDED)), st.integers(0, 5), words), min_size=1, max_size=4))
async def test_whatever_arrives_the_connection_ends_and_the_server_lives(
    site: Site, changes: list[tuple[int, int, bytes]]
) -> None:
    recorded = RECORDED
    for place, removed, word in changes:
        recorded = recorded[:place] + word + recorded[place + removed :]
    site.reset(echo(site))  # type: ignore[arg-type]
    async with site.client() as client:
        await client.say(recorded)
        client.writer.write_eof()
        await client.rest()
    await site.quiet()


tokens = st.text(string.ascii_lowercase, min_size=6, max_size=6)


@st.composite
def tenants(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """Requests of several tenants, whose bodies would like to be requests."""
    names = [
        f"zq{name}" for name in draw(st.lists(tokens, min_size=2, max_size=6, unique=True))
    ]  # no word of HTTP itself
    recorded = b""
    for name in names:
        token = name.encode()
        body = b"GET /%b HTTP/1.1\r\nx-token: %b\r\n\r\n" % (token, token)
        lines = [b"x-token: " + token, *draw(st.sampled_from([(), H2C, (b"expect: 100-continue",)]))]
        path = b"/%b" % token
        match draw(st.sampled_from(["none", "length", "chunks"])):
            case "none":
                recorded += request(b"GET " + path, *lines)
            case "length":
                recorded += post(body, path, *lines)
            case "chunks":
                at = draw(st.integers(1, len(body) - 1))
                trailer = b"x-trailer: %b\r\n" % token
                recorded += request(
                    b"POST " + path, *lines, CHUNKED, body=chunked(body[:at], body[at:], trailers=trailer)
                )
    return names, recorded


@relaxed
@given(tenants(), st.lists(st.integers(1, 2000), max_size=8), st.integers(0, 63))
async def test_no_tenant_sees_a_byte_of_another(
    site: Site, tenancy: tuple[list[str], bytes], cuts: list[int], readers: int
) -> None:
    """Even where some applications answer without reading; what each of them does see is whole."""
    names, recorded = tenancy
    site.reset(site.app)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        number, body, more = len(site.seen), b"", True
        site.seen.append(scope["path"])
        while more and readers >> number & 1:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        everything = repr((scope["raw_path"], scope["headers"], body))
        site.note([name for name in names if name in everything])
        await send_whole(send, 200, scope["raw_path"], {})

    site.app = app
    recorded += request(b"GET /none", b"connection: close")
    async with site.client() as client:
        await say_in_pieces(site, client, recorded, [cut for cut in cuts if cut < len(recorded)])
        answers = await client.rest()
    await site.quiet()
    assert site.seen == [f"/{name}" for name in names][: len(site.seen) - 1] + site.seen[-1:]
    assert site.notes == [[path[1:]] if path != "/none" else [] for path in site.seen]
    assert answers.count(b"HTTP/1.1 200") == len(site.seen)


async def test_a_head_of_up_to_64_kb_is_read_and_more_is_not(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_whole(send, 200, b"%d" % len(dict(scope["headers"])[b"x"]), {})

    site.app = app
    fits = MAX_HEAD_BYTES - 100
    async with site.client() as client:
        for _ in range(2):
            await client.say(request(b"GET /", b"x: " + b"a" * fits))
            assert (await client.answer()).body == b"%d" % fits
        await client.say(request(b"GET /", b"x: " + b"a" * MAX_HEAD_BYTES))
        assert (await client.answer()).status == 431
        assert await client.rest() == b""


@pytest.mark.parametrize("line", [b"x: y\r\n", b"x: " + b"y" * 1000 + b"\r\n"])
async def test_many_headers_are_too_large_as_one_is(site: Site, line: bytes) -> None:
    async with site.client() as client:
        await client.say(b"GET / HTTP/1.1\r\n" + line * (2 * MAX_HEAD_BYTES // len(line)) + b"\r\n")
        assert (await client.answer()).status == 431
        assert await client.rest() == b""


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n", b"\r\n"])
async def test_a_head_without_end_is_refused_in_time(site: Site, start: bytes) -> None:
    """By the path, by the value of a header, by name, by empty lines; a little at a time."""
    piece = b"\r\n" * 2048 if start == b"\r\n" else b"a" * 4096
    async with site.client() as client:
        await client.say(start)
        sent = 0
        while client.reader._buffer == b"" and sent < 100:  # type: ignore[attr-defined]
            await client.say(piece)
            sent += 1
            await site.until(lambda sent=sent: site.arrived_bytes >= len(start) + sent * 4096)  # type: ignore[misc]
        assert (await client.answer()).status == 431
        assert sent <= MAX_HEAD_BYTES // 4096 + 2
        await client.say(*[piece] * 100)  # whoever goes on sending still gets to read the answer
        assert await client.rest() == b""


@pytest.mark.parametrize("tail", [b"0\r\nx: ", b"5;x="])
async def test_trailers_and_chunk_extensions_have_an_end_too(site: Site, tail: bytes) -> None:
    site.app = echo(site)  # type: ignore[assignment]
    start = request(b"POST /", CHUNKED, body=tail)
    async with site.client() as client:
        await say_in_pieces(site, client, start + b"a" * 2 * MAX_HEAD_BYTES, [len(start)])
        assert (await client.answer()).status == 431
        assert await client.rest() == b""


async def test_a_large_body_leaves_room_for_the_next_head(site: Site) -> None:
    """They may come in one read, and the limit on heads is not about bodies."""
    body = b"b" * (MAX_HEAD_BYTES + 5)
    site.app = echo(site)  # type: ignore[assignment]
    head = request(b"GET /next")
    async with site.client() as client:
        await client.say(post(body) + head[:20])
        await client.answer()
        await client.say(head[20:])
        assert (await client.answer()).status == 200
    assert [len(body) for _, body in site.seen] == [len(body), 0]


async def test_thousands_of_offers_to_upgrade_in_one_read_are_no_recursion(site: Site) -> None:
    site.app = echo(site)  # type: ignore[assignment]
    async with site.client() as client:
        await client.say(request(b"GET /", *H2C) * 1500)
        answers = await client.rest()
    assert answers.count(b"HTTP/1.1 200") == len(site.seen) > 60


def test_a_reader_needs_somebody_to_tell() -> None:
    reader = Reader({})
    with pytest.raises(httptools.HttpParserCallbackError):
        reader.data_received(request())
    for tell in (reader.head_begins, lambda: reader.refuse(400)):
        with pytest.raises(NotImplementedError):
            tell()
    with pytest.raises(NotImplementedError):
        reader.request_begins({}, [], keep_alive=True)
    with pytest.raises(NotImplementedError):
        reader.answered_request_ends(None)  # type: ignore[arg-type]
