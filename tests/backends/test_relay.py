"""The relay over scripted transports: what a client gets for everything an upstream can do."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from backends import sse
from backends.base import CHAT, Call, Event
from backends.errors import BackendTimeout, BackendUnavailable, UpstreamBroken, UpstreamRefused
from backends.keyring import KeyRing
from backends.relay import Relay
from backends.settings import Timeouts
from backends.transport import ConnectFailed, ConnectionBroken, DeadlinePassed
from backends.wire import Body, Usage
from tests.backends.fake_transport import FakeReply, FakeTransport, Piece

pytestmark = pytest.mark.anyio

SECRET = "pa55word-of-the-house"
STREAM = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def call(**fields: Any) -> Call:
    body = {"model": "theirs", "messages": [{"role": "user", "content": "hi"}]} | fields
    return Call(CHAT, Body(json.dumps(body).encode()), "req_1", "ours", headers={"traceparent": "00-1"})


def relay(outcome: FakeReply | Exception | asyncio.Event, **options: Any) -> tuple[Relay, FakeTransport]:
    transport = FakeTransport(outcome)
    options = {"keys": KeyRing([{"authorization": f"Bearer {SECRET}"}]), "timeouts": Timeouts()} | options
    return Relay("up", transport, **options), transport


def chunk(text: str = "", *, index: int = 0, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return sse.encode(json.dumps({"id": "c", "model": "theirs", "choices": [choice]} | fields).encode())


def whole(**fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hey"}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "model": "theirs", "choices": [choice], "usage": USAGE} | fields).encode()


def error(message: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message} | fields}).encode()


async def play(pieces: Sequence[Piece], *, asked: Call | None = None, **options: Any) -> list[Event]:
    backend, _ = relay(FakeReply(200, STREAM, pieces), **options)
    async with aclosing(backend.stream(asked or call())) as events:
        return [event async for event in events]


def texts(events: Sequence[Event]) -> str:
    frames = [frame for event in events for frame in sse.Reader().feed(event.raw)]
    chunks = [json.loads(frame.data) for frame in frames if frame.data != b"[DONE]"]
    return "".join(choice["delta"].get("content", "") for one in chunks for choice in one["choices"])


async def failure(pieces: Sequence[Piece], *, asked: Call | None = None) -> tuple[list[Event], Exception]:
    """What came before the end, and how it ended."""
    reply = FakeReply(200, STREAM, pieces)
    backend, _ = relay(reply)
    seen: list[Event] = []
    with pytest.raises(Exception) as caught:
        async with aclosing(backend.stream(asked or call())) as events:
            async for event in events:
                seen.append(event)
    assert reply.closed == 1
    return seen, caught.value


# Whole answers


async def test_a_whole_answer_comes_back_with_our_name_its_usage_and_the_headers_that_may_cross() -> None:
    reply = FakeReply(200, JSON | {"openai-processing-ms": "7", "set-cookie": "a=b"}, [whole()[:9], whole()[9:]])
    backend, transport = relay(reply)
    answer = await backend.complete(call())
    assert json.loads(answer.body) == json.loads(whole(model="ours"))
    assert (answer.usage, answer.headers, reply.closed) == (Usage(3, 2), {"openai-processing-ms": "7"}, 1)
    request = transport.requests[0]
    assert (request.method, request.path, request.body) == ("POST", "/chat/completions", call().body.raw)
    assert dict(request.headers) == {
        "content-type": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {SECRET}",
        "accept": "application/json",
        "traceparent": "00-1",
    }


@pytest.mark.parametrize("body", [b"", b"<html>down</html>", b"[1]", b'{"choices":', b"\xff"])
async def test_an_answer_that_is_not_a_json_object_is_broken(body: bytes) -> None:
    reply = FakeReply(200, JSON, [body])
    with pytest.raises(UpstreamBroken, match="not a JSON object"):
        await relay(reply)[0].complete(call())
    assert reply.closed == 1


async def test_an_error_under_status_200_is_broken_and_not_an_answer() -> None:
    with pytest.raises(UpstreamBroken, match="an error under status 200: overloaded"):
        await relay(FakeReply(200, JSON, [error("overloaded")]))[0].complete(call())


@pytest.mark.parametrize(
    ("status", "retry_after"), [(400, None), (404, None), (409, None), (413, None), (422, None), (429, "7")]
)
@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_the_clients_own_faults_keep_their_status_and_words(
    how: str, status: int, retry_after: str | None
) -> None:
    headers = JSON | ({"retry-after": retry_after} if retry_after else {})
    reply = FakeReply(status, headers, [error("too long", type="t", code="c", param="messages")])
    backend, _ = relay(reply)
    with pytest.raises(UpstreamRefused, match="^too long$") as caught:
        await (backend.complete(call()) if how == "complete" else anext(backend.stream(call())))
    refused = caught.value
    assert (refused.status, refused.type, refused.code, refused.param) == (status, "t", "c", "messages")
    assert (refused.retry_after, reply.closed) == (retry_after, 1)


async def test_an_error_body_of_another_shape_becomes_words() -> None:
    for body, words in ((b'{"error":"short"}', "short"), (b"plain words", "plain words"), (b"", "no message")):
        with pytest.raises(UpstreamRefused) as caught:
            await relay(FakeReply(400, {}, [body]))[0].complete(call())
        assert (str(caught.value), caught.value.type, caught.value.code) == (words, "invalid_request_error", None)


@pytest.mark.parametrize("status", [302, 401, 402, 403, 405, 418, 500, 502, 503, 529])
async def test_every_other_status_is_the_upstreams_own_affair(status: int) -> None:
    words = "it refused the gateway's key" if status in (401, 403) else "nope"
    with pytest.raises(UpstreamBroken, match=f"status {status}: {words}") as caught:
        await relay(FakeReply(status, JSON, [error("nope")]))[0].complete(call())
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("outcome", "ours", "words"),
    [
        (ConnectFailed("Connection refused"), BackendUnavailable, "not available: Connection refused"),
        (ConnectionBroken("reset"), UpstreamBroken, "reset"),
        (DeadlinePassed("connect", 5.0), BackendTimeout, "connect: 5 s"),
        (DeadlinePassed("first_byte", 2.5), BackendTimeout, "first_byte: 2.5 s"),
    ],
)
@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_failures_of_the_transport_become_ours(
    how: str, outcome: Exception, ours: type[Exception], words: str
) -> None:
    backend, _ = relay(outcome)
    with pytest.raises(ours, match=words):
        await (backend.complete(call()) if how == "complete" else anext(backend.stream(call())))


async def test_an_answer_cut_in_the_middle_is_broken_and_its_connection_closed() -> None:
    reply = FakeReply(200, JSON, [whole()[:20], ConnectionBroken("ended early")])
    with pytest.raises(UpstreamBroken, match="ended early"):
        await relay(reply)[0].complete(call())
    assert reply.closed == 1


async def test_a_whole_answer_has_a_deadline_from_end_to_end_and_a_stream_has_none() -> None:
    """Transports keep it; `tests/contracts` shows that they do."""
    limits = Timeouts(total_s=7)
    backend, transport = relay(FakeReply(200, JSON, [whole()]), timeouts=limits)
    await backend.complete(call())
    streaming, other = relay(
        FakeReply(200, {"content-type": "text/event-stream"}, [chunk("a", finish="stop")]), timeouts=limits
    )
    async for _ in streaming.stream(call()):
        pass
    assert [one.total_s for one in (*transport.requests, *other.requests)] == [7, None]
    late, _ = relay(DeadlinePassed("total", 6.93), timeouts=limits)
    with pytest.raises(BackendTimeout, match=r"total: 7 s"):
        await late.complete(call())


async def test_a_post_beside_the_api_answers_with_bytes_and_refuses_as_complete_does() -> None:
    assert await relay(FakeReply(200, JSON, [b"a", b"b"]))[0].post("/count", b"{}") == b"ab"
    with pytest.raises(UpstreamRefused):
        await relay(FakeReply(400, JSON, [error("no")]))[0].post("/count", b"{}")


async def test_a_post_beside_the_api_has_the_same_deadline() -> None:
    backend, transport = relay(FakeReply(200, JSON, [b"{}"]), timeouts=Timeouts(total_s=7))
    await backend.post("/count", b"{}")
    assert transport.requests[0].total_s == 7


async def test_an_upstream_says_who_it_is_and_counts_nothing() -> None:
    backend, transport = relay(FakeReply(200, JSON, []), identity="openai:x")
    assert await backend.count(call()) is None
    assert await backend.count_texts(["a"]) is None
    assert (await backend.identity(), await relay(ConnectFailed(""))[0].identity()) == ("openai:x", "up")
    assert (backend.status(), backend.local, backend.quotes) == ("ready", False, False)
    await backend.aclose()
    assert transport.closed


# Secrets


@pytest.mark.parametrize("text", [f"bad key {SECRET}!", "bad key sk-abcdef123456!", "bad key sk-proj-ab*****yz!"])
async def test_keys_do_not_reach_the_client(text: str) -> None:
    for outcome in (
        FakeReply(400, JSON, [error(text)]),
        FakeReply(402, JSON, [error(text)]),
        FakeReply(500, {}, [text.encode()]),
        FakeReply(200, JSON, [error(text)]),
        FakeReply(200, JSON, [text.encode()]),
        ConnectFailed(text),
        ConnectionBroken(text),
    ):
        with pytest.raises((UpstreamBroken, UpstreamRefused, BackendUnavailable)) as caught:
            await relay(outcome)[0].complete(call())
        assert "[redacted]" in str(caught.value)
        assert not any(secret in str(caught.value) for secret in (SECRET, "sk-"))
    seen, broken = await failure([sse.encode(error(text))])
    assert (seen, "[redacted]" in str(broken)) == ([], True)


async def test_ordinary_words_are_not_redacted() -> None:
    words = "send application/json, identity encoded"
    with pytest.raises(UpstreamRefused, match=words):
        await relay(FakeReply(400, JSON, [error(words)]))[0].complete(call())


async def test_a_key_across_the_cut_of_a_long_message_is_redacted_too() -> None:
    with pytest.raises(UpstreamBroken) as caught:
        await relay(FakeReply(500, {}, [b"x" * 190 + SECRET.encode()]))[0].complete(call())
    assert SECRET[:8] not in str(caught.value)


# Streams


async def test_a_stream_passes_on_until_done_whatever_the_pieces() -> None:
    raw = chunk("he") + chunk("llo") + chunk(finish="stop") + sse.DONE
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        events = await play(pieces)
        assert texts(events) == "hello"
        assert sum(event.text_bytes for event in events) == 5
        assert [event.last for event in events] == [False] * (len(events) - 1) + [True]
        assert len(events) == (1 if len(pieces) == 1 else 4)


async def test_events_that_need_no_change_pass_as_the_bytes_they_were() -> None:
    raw = b'event: x\r\nid: 4\r\ndata: { "model":"ours","choices":[{"index":0,"finish_reason":"stop"}] }\r\n\r\n'
    assert (await play([raw, sse.DONE]))[0].raw == raw


async def test_chunks_carry_the_name_the_client_asked_for() -> None:
    events = await play([b"event: delta\n" + chunk("a"), chunk(finish="stop"), sse.DONE])
    assert [json.loads(sse.Reader().feed(event.raw)[0].data)["model"] for event in events[:-1]] == ["ours", "ours"]
    assert sse.Reader().feed(events[0].raw)[0].event == "delta"


async def test_a_stream_that_finished_its_choice_needs_no_done() -> None:
    events = await play([chunk("a"), chunk(finish="length")])
    assert (texts(events), events[-1]) == ("a", Event(sse.DONE, last=True))


@pytest.mark.parametrize("end", [[], [ConnectionBroken("the stream ended")]])
async def test_a_cut_stream_is_broken_after_what_came(end: list[Piece]) -> None:
    seen, broken = await failure([chunk("a"), chunk("b")[:-1], *end])
    assert isinstance(broken, UpstreamBroken)
    assert "the stream ended" in str(broken)
    assert (texts(seen), any(event.last for event in seen)) == ("a", False)


async def test_one_finished_choice_of_two_is_not_an_answer() -> None:
    one = [chunk("a"), chunk("b", index=1), chunk(finish="stop")]
    _, broken = await failure(one, asked=call(n=2))
    assert isinstance(broken, UpstreamBroken)
    _, broken = await failure([chunk("a"), chunk(finish="stop")], asked=call(n=2))
    assert isinstance(broken, UpstreamBroken)
    events = await play([*one, chunk(index=1, finish="stop")], asked=call(n=2))
    assert events[-1].last


@pytest.mark.parametrize("pieces", [[], [b""], [b": hello\n\n"], [sse.DONE]])
async def test_an_empty_stream_is_broken(pieces: list[Piece]) -> None:
    seen, broken = await failure(pieces)
    assert isinstance(broken, UpstreamBroken)
    assert ("an empty stream" in str(broken), seen) == (True, [])


@pytest.mark.parametrize(
    "after", [[], [b"garbage\n\n", ConnectionBroken("late")], [b"x" * (17 * 1024 * 1024)], [asyncio.Event()]]
)
async def test_nothing_after_done_reaches_the_client_or_fails_the_answer(after: list[Piece]) -> None:
    reply = FakeReply(200, STREAM, [chunk("a") + sse.DONE, *after])
    async with aclosing(relay(reply)[0].stream(call())) as events, asyncio.timeout(5):
        assert [(event.last, event.raw.endswith(sse.DONE)) async for event in events] == [(True, True)]
    assert reply.closed == 1


async def test_a_malformed_event_breaks_the_stream() -> None:
    seen, broken = await failure([chunk("a"), b"data: {nonsense\n\n", sse.DONE])
    assert isinstance(broken, UpstreamBroken)
    assert ("not a JSON object" in str(broken), texts(seen)) == (True, "a")


async def test_an_event_beyond_the_limit_breaks_the_stream() -> None:
    _, broken = await failure([b"data: " + b"x" * (17 * 1024 * 1024)])
    assert isinstance(broken, UpstreamBroken)
    assert "an event is longer than" in str(broken)


async def test_html_in_place_of_a_stream_is_broken_with_its_words() -> None:
    reply = FakeReply(200, {"content-type": "text/html; charset=utf-8"}, [b"<h1>maintenance</h1>"])
    with pytest.raises(UpstreamBroken, match="asked for a stream, got text/html: <h1>maintenance"):
        await anext(relay(reply)[0].stream(call()))
    assert reply.closed == 1


async def test_a_stream_without_a_content_type_is_taken_for_one() -> None:
    reply = FakeReply(200, {}, [chunk("a", finish="stop")])
    async with aclosing(relay(reply)[0].stream(call())) as events:
        assert texts([event async for event in events]) == "a"


@pytest.mark.parametrize("before", [[], [chunk("a")]], ids=["first", "middle"])
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"type": "server_error"}, None),
        ({"code": 503}, None),
        ({"code": 429}, 429),
        ({"code": "x", "status": 404}, 404),
        ({"type": "invalid_request_error", "code": "bad", "param": "stop"}, 400),
    ],
)
async def test_an_error_event_is_the_engines_failure_or_the_clients_fault(
    before: list[Piece], fields: dict[str, Any], status: int | None
) -> None:
    seen, raised = await failure([*before, b"event: error\n" + sse.encode(error("no", **fields)), sse.DONE])
    assert (len(seen), str(raised).endswith("no")) == (len(before), True)
    assert isinstance(raised, UpstreamBroken) if status is None else isinstance(raised, UpstreamRefused)
    if isinstance(raised, UpstreamRefused):
        code = fields.get("code")
        assert (raised.status, raised.code) == (status, code if isinstance(code, str) else None)


async def test_an_error_event_with_a_strange_status_is_the_engines_failure() -> None:
    _, raised = await failure([sse.encode(error("no", status={"a": 1}))])
    assert isinstance(raised, UpstreamBroken)


async def test_a_silent_stream_passes_its_idle_deadline() -> None:
    seen, raised = await failure([chunk("a"), DeadlinePassed("idle", 9.0)])
    assert isinstance(raised, BackendTimeout)
    assert (raised.phase, texts(seen)) == ("idle", "a")


async def test_a_reader_who_leaves_closes_the_connection() -> None:
    reply = FakeReply(200, STREAM, [chunk("a"), asyncio.Event()])
    async with aclosing(relay(reply)[0].stream(call())) as events:
        await anext(events)
        assert reply.closed == 0
    assert reply.closed == 1


async def test_a_cancelled_reader_closes_the_connection() -> None:
    reply, began = FakeReply(200, STREAM, [chunk("a"), asyncio.Event()]), asyncio.Event()

    async def read() -> None:
        async with aclosing(relay(reply)[0].stream(call())) as events:
            async for _ in events:
                began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reply.closed == 1


async def test_comments_stay_on_the_connection_they_came_over() -> None:
    assert texts(await play([b": ping\n\n", chunk("a", finish="stop"), b": ping\n\n"])) == "a"


# Usage in streams


@pytest.mark.parametrize(
    ("options", "ask", "sent"),
    [
        (None, True, {"include_usage": True}),
        ({"other": 1}, True, {"other": 1, "include_usage": True}),
        ({"include_usage": False}, True, {"include_usage": True}),
        ({"include_usage": True}, True, {"include_usage": True}),
        (None, False, None),
        ({"include_usage": False}, False, {"include_usage": False}),
    ],
)
async def test_usage_is_asked_for_and_given_to_those_who_asked(
    options: dict[str, Any] | None, ask: bool, sent: dict[str, Any] | None
) -> None:
    asked = call() if options is None else call(stream_options=options)
    usage = sse.encode(json.dumps({"model": "theirs", "choices": [], "usage": USAGE}).encode())
    backend, transport = relay(
        FakeReply(200, STREAM, [chunk("a"), chunk(finish="stop"), usage, sse.DONE]), ask_usage=ask
    )
    async with aclosing(backend.stream(asked)) as stream:
        events = [event async for event in stream]
    assert Body(transport.requests[0].body).read("stream_options", dict[str, Any]) == sent
    assert transport.requests[0].headers["accept"] == "text/event-stream"
    assert [event.usage for event in events if event.usage] == [Usage(3, 2)]
    wanted = not ask or bool((options or {}).get("include_usage"))
    assert any(b'"usage"' in event.raw for event in events) is wanted


async def test_usage_beside_the_last_choice_is_read_and_stays() -> None:
    events = await play([chunk("a", finish="stop", usage=USAGE), sse.DONE])
    assert (events[0].usage, texts(events)) == (Usage(3, 2), "a")


async def test_usage_beside_tool_calls_does_not_withhold_the_calls() -> None:
    delta = {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": "{}"}}]}
    raw = chunk(choices=[{"index": 0, "delta": delta, "finish_reason": "tool_calls"}], usage=USAGE)
    assert b"call_1" in (await play([raw, sse.DONE]))[0].raw


async def test_a_stream_that_ends_with_tool_calls_needs_no_done() -> None:
    choice = {"index": 0, "delta": {"tool_calls": [{"index": 0}]}, "finish_reason": "tool_calls"}
    assert (await play([chunk(choices=[choice])]))[-1].last


async def test_the_count_before_an_event_is_read_and_taken_off() -> None:
    raw = [b": tokens=7,1\n" + chunk("a", model="ours"), b": tokens=7,2\n" + chunk(finish="stop"), sse.DONE]
    events = await play(raw)
    assert [event.usage for event in events] == [Usage(7, 1), Usage(7, 2), None]
    assert events[0].raw == chunk("a", model="ours")
    assert not any(b"tokens=" in event.raw for event in events)


async def test_a_comment_that_only_looks_like_a_count_does_no_harm() -> None:
    assert texts(await play([b": tokens=many\n" + chunk("a", finish="stop"), sse.DONE])) == "a"
