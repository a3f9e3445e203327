"""What providers want beside a key: several keys, Azure's addresses, a private CA, a proxy, no more than so many at a time."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority, tls_front
from tests.faults.upstream import Line, Received, Upstream, answer_of, chunk_of, playing
from tests.running import Gateway, running

ASK = [{"role": "user", "content": "hi"}]
ENVIRONMENT = {"FIRST_KEY": "first-key-0123456789", "SECOND_KEY": "second-key-0123456789"}


@contextmanager
def gateway_to(
    upstream: Upstream, home: Path, *, model: dict[str, Any] | None = None, **backend: Any
) -> Iterator[Gateway]:
    settings = {"name": "up", "engine": "openai", "base_url": upstream.base_url} | backend
    config = {"backends": [settings], "models": [{"name": "m", "route": ["up"]} | (model or {})]}
    with running(home, config, ENVIRONMENT) as gateway:
        yield gateway


def keys_seen(upstream: Upstream) -> list[str]:
    return [one.headers.get("authorization", "").removeprefix("Bearer ") for one in upstream.received]


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error"} | fields}).encode()


@pytest.mark.parametrize("status", [401, 403, 429])
def test_the_second_key_takes_over_where_the_first_is_refused(tmp_path: Path, status: int) -> None:
    def script(request: Received, line: Line) -> None:
        if "first-key" in request.headers["authorization"]:
            line.answer(status, error("no more"), retry_after="30")
        else:
            line.answer(200, answer_of("hello"))

    with playing(script) as upstream, gateway_to(upstream, tmp_path, api_key_env=list(ENVIRONMENT)) as gateway:
        client = gateway.sdk()
        for _ in range(2):
            assert client.chat.completions.create(model="m", messages=ASK).choices[0].message.content == "hello"
        first, second = ENVIRONMENT.values()
        assert keys_seen(upstream) == [first, second, second]


def test_keys_come_from_files_and_are_named_nowhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("key-from-a-file-012345\n")

    def script(request: Received, line: Line) -> None:
        line.answer(500, error(f"I was given {request.headers['authorization']}"))

    settings = {"api_key_file": str(tmp_path / "key")}
    with playing(script) as upstream, gateway_to(upstream, tmp_path, **settings) as gateway, gateway.http as http:
        answer = http.post("/v1/chat/completions", json={"model": "m", "messages": ASK})
        assert (answer.status_code, keys_seen(upstream)) == (502, ["key-from-a-file-012345"])
        assert "key-from-a-file" not in answer.text + str(answer.headers)


def test_azures_addresses_and_its_header(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.answer(200, answer_of("hello"))

    with playing(script) as upstream:
        origin = upstream.base_url.removesuffix("/v1")
        settings = {
            "base_url": origin + "/openai/deployments/{model}",
            "query": {"api-version": "2024-10-21"},
            "auth": "api-key",
            "api_key_env": "FIRST_KEY",
        }
        model = {"route": [{"backend": "up", "model": "my deployment/1"}]}
        with gateway_to(upstream, tmp_path, model=model, **settings) as gateway:
            gateway.sdk().chat.completions.create(model="m", messages=ASK)
        (seen,) = upstream.received
        assert seen.path == "/openai/deployments/my%20deployment%2F1/chat/completions?api-version=2024-10-21"
        assert seen.headers["api-key"] == ENVIRONMENT["FIRST_KEY"]
        assert "authorization" not in seen.headers


def test_an_upstream_that_knows_no_usage_option_is_asked_without_it_from_then_on(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        if "stream_options" in request.json:
            line.answer(400, error("Unrecognized request argument supplied: stream_options"))
            return
        line.start_stream()
        line.event(chunk_of("hello", finish="stop"))
        line.event("[DONE]")
        line.end_stream()

    with playing(script) as upstream, gateway_to(upstream, tmp_path) as gateway:
        for _ in range(2):
            stream = gateway.sdk().chat.completions.create(model="m", messages=ASK, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "hello"
        assert ["stream_options" in one.json for one in upstream.received] == [True, False, False]


def test_a_clients_own_usage_option_is_not_taken_from_it(tmp_path: Path) -> None:
    def script(request: Received, line: Line) -> None:
        line.answer(400, error("Unrecognized request argument supplied: stream_options"))

    with playing(script) as upstream, gateway_to(upstream, tmp_path) as gateway, gateway.http as http:
        body = {"model": "m", "messages": ASK, "stream": True, "stream_options": {"include_usage": True}}
        assert http.post("/v1/chat/completions", json=body).status_code == 400
        assert len(upstream.received) == 1


def test_no_more_than_max_concurrent_reach_it_and_the_queue_is_bounded(tmp_path: Path) -> None:
    free, lock = threading.Event(), threading.Lock()
    state = {"now": 0, "most": 0}

    def script(request: Received, line: Line) -> None:
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        free.wait(10)
        with lock:
            state["now"] -= 1
        line.answer(200, answer_of("hello"))

    async def ask_many(gateway: Gateway) -> list[int]:
        async def ask() -> int:
            try:
                async with gateway.async_sdk() as client:
                    await client.chat.completions.create(model="m", messages=ASK)
                    return 200
            except Exception as exc:
                return int(exc.status_code)  # type: ignore[attr-defined]

        tasks = [asyncio.create_task(ask()) for _ in range(8)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 3 or state["now"] < 2:
            done, _ = await asyncio.wait(tasks, timeout=0.01)
        free.set()
        return sorted([await task for task in tasks])

    with playing(script) as upstream, gateway_to(upstream, tmp_path, max_concurrent=2, max_waiting=3) as gateway:
        assert asyncio.run(ask_many(gateway)) == [200] * 5 + [429] * 3
        assert (state["most"], len(upstream.received)) == (2, 5)


@pytest.mark.parametrize("how", ["direct", "through a proxy"])
def test_a_private_authority_and_a_client_certificate(tmp_path: Path, how: str) -> None:
    authority = Authority(tmp_path)

    def script(request: Received, line: Line) -> None:
        line.answer(200, answer_of("hello"))

    with playing(script) as upstream, tls_front(authority, upstream.port) as port, connect_proxy() as proxy:
        settings: dict[str, Any] = {
            "base_url": f"https://localhost:{port}/v1",
            "tls": {"ca_file": str(authority.ca), "client_cert_file": str(authority.client)},
        }
        if how != "direct":
            settings["proxy"] = f"http://user:${{PROXY_PASSWORD}}@127.0.0.1:{proxy.port}"
        environment = {"PROXY_PASSWORD": "open-sesame"}
        config = {
            "backends": [{"name": "up", "engine": "openai"} | settings],
            "models": [{"name": "m", "route": ["up"]}],
        }
        with running(tmp_path, config, environment) as gateway:
            assert gateway.sdk().chat.completions.create(model="m", messages=ASK).choices[0].message.content == "hello"
        assert [line.split()[:2] for line in proxy.asked] == (
            [] if how == "direct" else [["CONNECT", f"localhost:{port}"]]
        )
        (tmp_path / "other").mkdir()
        bare = config | {"backends": [config["backends"][0] | {"tls": {"ca_file": str(authority.ca)}}]}
        with running(tmp_path / "other", bare, environment) as gateway, gateway.http as http:
            answer = http.post("/v1/chat/completions", json={"model": "m", "messages": ASK})
            assert answer.status_code in (502, 503), "without the client's certificate nobody is let in"


class Proxy:
    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[str] = []


@contextmanager
def connect_proxy() -> Iterator[Proxy]:
    """An HTTP proxy that tunnels for whoever knows the password."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    state: dict[str, Any] = {}

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "dXNlcjpvcGVuLXNlc2FtZQ==" not in head:  # user:open-sesame
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            writer.close()
            return
        state["proxy"].asked.append(head.splitlines()[0])
        host, port = head.split()[1].split(":")
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer))

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        state["proxy"] = Proxy(server.sockets[0].getsockname()[1])
        state["stop"] = asyncio.Event()
        started.set()
        async with server:
            await state["stop"].wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield state["proxy"]
    finally:
        loop.call_soon_threadsafe(state["stop"].set)
        thread.join(10)
        loop.close()
