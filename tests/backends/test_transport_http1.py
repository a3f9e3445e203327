"""What our own client is strict about, beyond the contract: no byte of one answer may ever reach another request."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.http1 import HIGH_WATER_BYTES
from backends.settings import Timeouts
from backends.transport import ConnectFailed, ConnectionBroken, Request, TransportError, pieces_of
from backends.transport_http1 import Http1Transport

pytestmark = pytest.mark.anyio

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Server:
    """Counts connections; `behave` gets (number of the connection, reader, writer)."""

    def __init__(self) -> None:
        self.connections = 0


@asynccontextmanager
async def serving(
    behave: Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], **options: float
) -> AsyncIterator[tuple[Http1Transport, Server]]:
    state = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        state.connections += 1
        try:
            await behave(state.connections, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    transport = Http1Transport(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", **options)
    try:
        yield transport, state
    finally:
        await transport.aclose()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def answering(*answers: bytes) -> Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Each request of a connection gets the next answer; the connection stays open."""

    async def behave(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return behave


async def ask(transport: Http1Transport, **timeouts: float) -> bytes:
    reply = await transport.send(Request("GET", "/", {}, b"", Timeouts(**{"idle_s": 5, "first_byte_s": 5} | timeouts)))
    try:
        return b"".join([piece async for piece in pieces_of(reply)])
    finally:
        reply.close()


async def test_a_clean_connection_serves_many_requests() -> None:
    async with serving(answering(*[WHOLE] * 5)) as (transport, server):
        assert [await ask(transport) for _ in range(5)] == [b"hello"] * 5
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE + b"x",
        WHOLE + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["a byte behind the end", "a whole answer behind the end", "HTTP/1.0", "connection: close"],
)
async def test_an_answer_that_is_whole_is_given_but_its_connection_never_again(answer: bytes) -> None:
    async with serving(answering(answer, answer)) as (transport, server):
        assert await ask(transport) == b"hello"
        assert await ask(transport) == b"hello"
    assert server.connections == 2


async def test_bytes_on_an_idle_connection_end_it() -> None:
    gone = asyncio.Event()

    async def behave(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        await writer.drain()
        if number == 1:
            await released.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")
            try:
                await reader.read()
            finally:
                gone.set()
        await reader.read()

    released = asyncio.Event()
    async with serving(behave) as (transport, server):
        assert await ask(transport) == b"hello"
        released.set()
        async with asyncio.timeout(5):
            await gone.wait()
        assert await ask(transport) == b"hello"
    assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nhello" + WHOLE,
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + WHOLE,
        b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
        b"HTTP/1.1 200 OK\r\nx : y\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nx: y\r\n folded\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
    ],
)
async def test_what_is_doubtful_is_broken(answer: bytes) -> None:
    async with serving(answering(answer)) as (transport, _):
        with pytest.raises(ConnectionBroken):
            await ask(transport)


async def test_interim_answers_are_passed_over() -> None:
    async with serving(answering(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + WHOLE)) as (transport, _):
        reply = await transport.send(Request("GET", "/", {}, b"", Timeouts()))
        assert (reply.status, "link" in reply.headers) == (200, False)
        reply.close()


async def test_endless_heads_and_trailers_are_cut_off() -> None:
    async def heads(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-filler: " + b"y" * 1000 + b"\r\n")
            await writer.drain()

    async def trailers(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
        while True:
            writer.write(b"x-filler: " + b"y" * 1000 + b"\r\n")
            await writer.drain()

    for behave in (heads, trailers):
        async with serving(behave) as (transport, _):
            with pytest.raises(ConnectionBroken):
                await ask(transport)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_compression_that_nobody_asked_for_is_undone(pack: Callable[[bytes], bytes]) -> None:
    body = pack(b"hello " * 100_000)
    name = b"gzip" if pack is gzip.compress else b"deflate"
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n" % (name, len(body))
    async with serving(answering(head + body)) as (transport, _):
        assert await ask(transport) == b"hello " * 100_000


async def test_a_slow_reader_stops_the_server_instead_of_filling_memory() -> None:
    sent = 0

    async def behave(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        total = 64 * 1024 * 1024
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(total // 65536):
            writer.write(b"z" * 65536)
            await writer.drain()
            sent += 65536

    async with serving(behave) as (transport, _):
        reply = await transport.send(Request("GET", "/", {}, b"", Timeouts()))
        pieces = pieces_of(reply)
        await anext(pieces)
        while not reply._connection._paused:  # until we take no more
            await asyncio.sleep(0)
        assert reply._connection._buffered <= HIGH_WATER_BYTES + 512 * 1024
        assert sent < 32 * 1024 * 1024
        total = len(b"".join([piece async for piece in pieces]))
        reply.close()
    assert total > 60 * 1024 * 1024


async def test_an_early_answer_to_a_large_upload_is_heard_and_the_connection_is_not_used_again() -> None:
    async def behave(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await reader.read(1)
        await asyncio.Event().wait()

    async with serving(behave) as (transport, server):
        request = Request("POST", "/", {}, b"u" * 64 * 1024 * 1024, Timeouts(idle_s=5))
        for _ in range(2):
            reply = await transport.send(request)
            assert reply.status == 413
            reply.close()
    assert server.connections == 2


async def test_a_large_body_arrives_whole() -> None:
    got: list[bytes] = []

    async def behave(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.append(await reader.readexactly(5 * 1024 * 1024))
        writer.write(WHOLE)
        await reader.read()

    body = bytes(range(256)) * 20480
    async with serving(behave) as (transport, _):
        reply = await transport.send(Request("POST", "/", {}, body, Timeouts()))
        assert reply.status == 200
        reply.close()
    assert got == [body]


@pytest.mark.parametrize("header", [{"x": "a\r\nb: c"}, {"x": "a\nb"}, {"x\r\ny": "a"}, {"x": "\0"}])
async def test_a_header_with_a_line_end_is_never_sent(header: dict[str, str]) -> None:
    async with serving(answering(WHOLE)) as (transport, server):
        with pytest.raises(ConnectFailed):
            await transport.send(Request("GET", "/", header, b"", Timeouts()))
    assert server.connections == 0


async def test_a_cancelled_request_closes_its_connection() -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def behave(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        try:
            await reader.read()
        except ConnectionError:
            pass
        closed.set()

    async with serving(behave) as (transport, _):
        task = asyncio.create_task(ask(transport))
        await arrived.wait()
        task.cancel()
        async with asyncio.timeout(5):
            await closed.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_idle_connections_are_closed_after_a_while() -> None:
    closed = asyncio.Event()

    async def behave(_: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        try:
            await reader.read()
        except ConnectionError:
            pass
        closed.set()

    async with serving(behave, keepalive_s=0.05) as (transport, _):
        await ask(transport)
        async with asyncio.timeout(5):
            await closed.wait()


async def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    """It lies in the system's buffer, unread, when the next request wants the connection."""
    sent = asyncio.Event()

    async def behave(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)
        if number == 1:
            await asked.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")
            sent.set()
        await reader.read()

    asked = asyncio.Event()
    async with serving(behave) as (transport, server):
        assert await ask(transport) == b"hello"
        asked.set()
        await sent.wait()
        assert await ask(transport) == b"hello"
    assert server.connections == 2


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 120),
        st.sampled_from([b"", b"\r\n", b"\n", b"0", b"9", b"x", b"\0", b" ", b"chunked", b"HTTP/1.1 "]),
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mutations=MUTATIONS,
    chunked=st.booleans(),
    cuts=st.lists(st.integers(0, 150), max_size=4),
    behind=st.sampled_from([b"", b"A", b"\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nTENANTA"]),
)
async def test_no_answer_of_one_tenant_ever_reaches_another(
    mutations: list[tuple[int, bytes]], chunked: bool, cuts: list[int], behind: bytes
) -> None:
    """Tenant A's upstream answers with something mutilated; tenant B then gets its own answer or none at all.

    Everything has been written before B asks. What an upstream sends after B's request is B's by HTTP/1.1's own order.
    """
    written = asyncio.Event()
    body = b"7\r\nTENANTA\r\n0\r\n\r\n" if chunked else b"TENANTA"
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: 7"
    answer = bytearray(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + body)
    for place, what in mutations:
        answer[place % (len(answer) + 1) : place % (len(answer) + 1) + 1] = what
    answer += behind
    ends = sorted({min(cut, len(answer)) for cut in cuts} | {len(answer)})

    async def behave(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if number == 1:
            start = 0
            try:
                for end in ends:
                    writer.write(bytes(answer[start:end]))
                    await writer.drain()
                    await asyncio.sleep(0)
                    start = end
            finally:
                written.set()
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nTENANTB")
        await reader.read()

    async with serving(behave) as (transport, _):
        try:
            await ask(transport, idle_s=0.05, first_byte_s=0.05)
        except TransportError:
            pass
        try:
            async with asyncio.timeout(5):
                await written.wait()
            assert await ask(transport, idle_s=0.2, first_byte_s=0.2) == b"TENANTB"
        except TransportError:
            pass
