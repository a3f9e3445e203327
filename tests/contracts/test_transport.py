"""Every implementation of `Transport`, against a raw server on the loopback that does what the test says."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backends.settings import Timeouts
from backends.transport import ConnectFailed, ConnectionBroken, DeadlinePassed, Reply, Request, pieces_of
from backends.transport_aiohttp import AiohttpTransport
from backends.transport_http1 import Http1Transport

pytestmark = pytest.mark.anyio

Made = AiohttpTransport | Http1Transport


class Implementation:
    """The one that the running test is about."""

    make: type[AiohttpTransport] | type[Http1Transport]


@pytest.fixture(params=[AiohttpTransport, Http1Transport], autouse=True)
def implementation(request: pytest.FixtureRequest) -> None:
    Implementation.make = request.param


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Mixed-Case: Yes\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Connection:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Head and body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return head + (await self.reader.readexactly(int(length[0].partition(b":")[2])) if length else b"")

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed_by_client(self) -> bool:
        """Waits for the end of what the client sends."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True

    def reset(self) -> None:
        self.writer.transport.abort()


@asynccontextmanager
async def serving(
    behave: Callable[[Connection], Awaitable[None]], *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Made, list[Connection]]]:
    """A server that gives every connection to `behave`, and a transport to it."""
    connections: list[Connection] = []
    handlers: list[asyncio.Task[None]] = []

    async def handle(connection: Connection) -> None:
        try:
            await behave(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is done
        finally:
            connection.writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(Connection(reader, writer))
        handlers.append(asyncio.create_task(handle(connections[-1])))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    transport = Implementation.make(f"{'https' if tls else 'http'}://127.0.0.1:{port}/v1/")
    try:
        yield transport, connections
    finally:
        await transport.aclose()
        server.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await server.wait_closed()


def request(**timeouts: float) -> Request:
    return Request("POST", "/chat", {"x-a": "b"}, b'{"a":1}', Timeouts(**timeouts))


async def body_of(reply: Reply) -> bytes:
    try:
        return b"".join([piece async for piece in pieces_of(reply)])
    finally:
        reply.close()


async def test_a_request_goes_out_as_given_and_its_answer_comes_back() -> None:
    seen: list[bytes] = []

    async def behave(connection: Connection) -> None:
        seen.append(await connection.request())
        await connection.say(WHOLE)

    async with serving(behave) as (transport, _):
        reply = await transport.send(request())
        assert (reply.status, reply.headers["x-mixed-case"]) == (200, "Yes")
        assert await body_of(reply) == b"hello"
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat HTTP/1.1\r\n")
    assert (b"x-a: b" in head, b"user-agent" in head.lower(), body) == (True, False, b'{"a":1}')


async def test_pieces_come_as_they_are_sent() -> None:
    more = asyncio.Event()

    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.say(CHUNKED + b"2\r\nab\r\n")
        await more.wait()
        await connection.say(b"1\r\nc\r\n0\r\n\r\n")

    async with serving(behave) as (transport, _), asyncio.timeout(5):
        reply = await transport.send(request())
        pieces = pieces_of(reply)
        assert await anext(pieces) == b"ab"
        more.set()
        assert [piece async for piece in pieces] == [b"c"]
        reply.close()


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    async def behave(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.say(WHOLE)

    async with serving(behave) as (transport, connections):
        for _ in range(3):
            assert await body_of(await transport.send(request())) == b"hello"
        assert len(connections) == 1


async def test_closing_an_unfinished_reply_closes_its_connection() -> None:
    closed: list[bool] = []
    noticed = asyncio.Event()

    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.say(CHUNKED + b"2\r\nab\r\n")
        closed.append(await connection.closed_by_client())
        noticed.set()

    async with serving(behave) as (transport, connections), asyncio.timeout(5):
        reply = await transport.send(request())
        assert await anext(pieces_of(reply)) == b"ab"
        reply.close()
        await noticed.wait()
        second = await transport.send(request())
        second.close()
        assert (closed[0], len(connections)) == (True, 2)


async def test_redirects_are_answers_and_cookies_are_not_kept() -> None:
    seen: list[bytes] = []

    async def behave(connection: Connection) -> None:
        while True:
            seen.append(await connection.request())
            head = b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
            await connection.say(head)

    async with serving(behave) as (transport, _):
        for _ in range(2):
            reply = await transport.send(request())
            assert (reply.status, await body_of(reply)) == (307, b"")
    assert [b"/elsewhere" in one or b"cookie" in one.lower() for one in seen] == [False, False]


async def test_nobody_listening_is_a_failed_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transport = Implementation.make(f"http://127.0.0.1:{port}")
    with pytest.raises(ConnectFailed, match="(?i)connect"):
        await transport.send(request())
    await transport.aclose()


async def test_a_unix_socket_that_is_not_there_is_a_failed_connect(tmp_path: Path) -> None:
    transport = Implementation.make("http://worker/v1", socket_path=str(tmp_path / "gone.sock"))
    with pytest.raises(ConnectFailed):
        await transport.send(request())
    await transport.aclose()


async def test_a_unix_socket_is_spoken_to_like_any_server(tmp_path: Path) -> None:
    seen: list[bytes] = []
    done = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await Connection(reader, writer).request())
        writer.write(WHOLE)
        writer.close()
        await writer.wait_closed()
        done.set()

    server = await asyncio.start_unix_server(accept, tmp_path / "s.sock")
    transport = Implementation.make("http://worker/v1", socket_path=str(tmp_path / "s.sock"))
    async with asyncio.timeout(5):
        assert await body_of(await transport.send(request())) == b"hello"
        await done.wait()
    await transport.aclose()
    server.close()
    await server.wait_closed()
    assert b"host: worker\r\n" in seen[0].lower()


async def test_a_full_backlog_passes_the_connect_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        transport = Implementation.make(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(DeadlinePassed) as caught:
            await transport.send(request(connect_s=0.05))
        await transport.aclose()
        for filler in fillers:
            filler.close()
    assert (caught.value.phase, caught.value.deadline_s) == ("connect", 0.05)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 20", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\0" * 40],
    ids=["nothing", "half a head", "another protocol", "a bad length", "zeros"],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_ends_or_talks_nonsense_before_the_head_is_broken(answer: bytes, reset: bool) -> None:
    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.say(answer)
        if reset:
            connection.reset()

    async with serving(behave) as (transport, _):
        with pytest.raises(ConnectionBroken):
            await transport.send(request())


@pytest.mark.parametrize(
    "start",
    [OK + b"Content-Length: 9\r\n\r\nab", CHUNKED + b"2\r\nab\r\n", CHUNKED + b"2\r\nab\r\nzz\r\n"],
    ids=["short of its length", "no last chunk", "a bad chunk"],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_body_that_ends_early_is_broken(start: bytes, reset: bool) -> None:
    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.say(start)
        if reset:
            connection.reset()

    async with serving(behave) as (transport, _):
        with pytest.raises(ConnectionBroken):
            await body_of(await transport.send(request()))


async def test_no_head_in_time_passes_the_first_byte_deadline() -> None:
    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.closed_by_client()

    async with serving(behave) as (transport, _):
        with pytest.raises(DeadlinePassed) as caught:
            await transport.send(request(connect_s=0.05, first_byte_s=0.05))
    assert (caught.value.phase, caught.value.deadline_s) == ("first_byte", 0.05)


@pytest.mark.parametrize("where", ["head", "body"])
async def test_the_whole_exchange_has_a_deadline_of_its_own(where: str) -> None:
    async def behave(connection: Connection) -> None:
        await connection.request()
        if where == "body":
            await connection.say(CHUNKED + b"2\r\nab\r\n")
        await connection.closed_by_client()

    async with serving(behave) as (transport, _):
        with pytest.raises(DeadlinePassed) as caught:
            await body_of(await transport.send(replace(request(), total_s=0.05)))
    assert caught.value.phase == "total"


async def test_silence_between_pieces_passes_the_idle_deadline() -> None:
    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.say(CHUNKED + b"2\r\nab\r\n")
        await connection.closed_by_client()

    async with serving(behave) as (transport, _):
        reply = await transport.send(request(idle_s=0.05))
        pieces = pieces_of(reply)
        assert await anext(pieces) == b"ab"
        with pytest.raises(DeadlinePassed) as caught:
            await anext(pieces)
        reply.close()
    assert (caught.value.phase, caught.value.deadline_s) == ("idle", 0.05)


async def test_a_server_without_tls_is_a_failed_connect() -> None:
    async def behave(connection: Connection) -> None:
        await connection.reader.read(1)
        await connection.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(behave) as (plain, _):
        secure = Implementation.make(plain.base_url.replace("http:", "https:"))
        with pytest.raises(ConnectFailed):
            await secure.send(request())
        await secure.aclose()


async def test_a_certificate_that_nobody_signed_is_a_failed_connect(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*command, "-days", "1", "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async def behave(connection: Connection) -> None:
        await connection.request()

    async with serving(behave, tls=tls) as (transport, _):
        with pytest.raises(ConnectFailed, match="certificate"):
            await transport.send(request())


async def test_closing_an_unused_transport_is_harmless() -> None:
    await Implementation.make("http://127.0.0.1:1").aclose()
