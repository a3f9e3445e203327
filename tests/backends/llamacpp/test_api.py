"""A worker as its callers see it: sampling, engine, scheduler and API in a real process with a model that babbles."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from backends.base import EMBEDDINGS, Call, PromptSize
from backends.errors import UpstreamRefused
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.synthetic import CONTROL, vocabulary
from backends.relay import Relay
from backends.settings import Timeouts
from backends.transport import Request, pieces_of
from backends.transport_http1 import Http1Transport
from tests.backends.llamacpp.local import call, chat, embedding, events, legacy, running, settings, texts

pytestmark = pytest.mark.anyio

TOKENS = vocabulary()[0]
END_OF_TURN = CONTROL.index("<|end|>") + 1
ON_AND_ON = {str(END_OF_TURN): -100, str(CONTROL.index("</s>") + 1): -100}
"""Biases under which the model never ends its turn."""


def only(token: bytes) -> dict[str, float]:
    """Biases under which every token of the answer is this one."""
    return {str(TOKENS.index(token)): 100.0} | {str(END_OF_TURN): -100.0}


async def refused(backend: LocalBackend, asked: Call) -> UpstreamRefused:
    with pytest.raises(UpstreamRefused) as caught:
        await backend.complete(asked)
    return caught.value


# What is generated


async def test_greedy_answers_are_always_the_same(local: LocalBackend) -> None:
    first = await texts(local, chat())
    assert first == await texts(local, chat()) == await texts(local, chat(seed=7))
    assert first != await texts(local, chat("another question"))


async def test_a_seed_repeats_an_answer_and_another_seed_gives_another(local: LocalBackend) -> None:
    asked = {"temperature": 1.5, "max_tokens": 40, "logit_bias": ON_AND_ON}
    answers = [await texts(local, chat(seed=seed, **asked)) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    unseeded = [await texts(local, chat(**asked)) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}])
async def test_samplers_that_leave_one_candidate_are_greedy(local: LocalBackend, narrow: dict[str, Any]) -> None:
    greedy = await texts(local, chat(logit_bias=ON_AND_ON))
    assert await texts(local, chat(temperature=1.5, seed=3, logit_bias=ON_AND_ON, **narrow)) == greedy


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repeat_penalty": 10}])
async def test_penalties_change_an_answer_that_repeats_itself(local: LocalBackend, penalty: dict[str, Any]) -> None:
    asked = {"max_tokens": 60, "logit_bias": ON_AND_ON}
    plain, penalised = [(await texts(local, chat(**asked | more)))[0].split() for more in ({}, penalty)]
    assert len(set(penalised)) > len(set(plain))


async def test_a_bias_can_force_a_token_and_ban_one(local: LocalBackend) -> None:
    assert await texts(local, chat(max_tokens=3, logit_bias=only("▁llama".encode()))) == [" llama llama llama"]
    first = (await texts(local, chat(max_tokens=1)))[0]
    banned = {str(TOKENS.index(first.replace(" ", "▁").encode())): -100}
    assert await texts(local, chat(max_tokens=1, logit_bias=banned)) != [first]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_the_answer_ends_at_its_limit_with_exact_usage(local: LocalBackend, limit: str) -> None:
    answer = await local.complete(chat(**{"max_tokens": None, "logit_bias": ON_AND_ON, limit: 5}))
    body = json.loads(answer.body)
    size = await local.count(chat())
    assert (body["choices"][0]["finish_reason"], body["model"]) == ("length", "ours")
    assert body["usage"].pop("prompt_tokens_details")["cached_tokens"] < size.prompt_tokens
    assert body["usage"] == {
        "prompt_tokens": size.prompt_tokens,
        "completion_tokens": 5,
        "total_tokens": size.prompt_tokens + 5,
    }


async def test_without_a_limit_the_answer_ends_with_the_window(local: LocalBackend) -> None:
    answer = await local.complete(chat(max_tokens=None, logit_bias=ON_AND_ON))
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256


async def test_the_model_ends_its_own_turn(local: LocalBackend) -> None:
    answer = await local.complete(chat(logit_bias={str(END_OF_TURN): 100}))
    body = json.loads(answer.body)
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert body["usage"]["completion_tokens"] == 0


async def test_a_stop_string_ends_the_answer_and_is_not_shown(local: LocalBackend) -> None:
    whole = (await texts(local, chat(logit_bias=ON_AND_ON)))[0]
    stop = whole[7:11]  # anywhere, also across tokens
    body = json.loads((await local.complete(chat(logit_bias=ON_AND_ON, stop=["never", stop]))).body)
    choice = body["choices"][0]
    assert choice["message"]["content"] == whole[: whole.index(stop)]
    assert (choice["finish_reason"], body["usage"]["completion_tokens"] < 12) == ("stop", True)


async def test_characters_of_several_tokens_come_out_whole(local: LocalBackend) -> None:
    """A forced byte that begins a character makes U+FFFD at the end, not in the middle of a stream."""
    asked = chat(max_tokens=1, logit_bias=only(b"<0xC3>"), stream=True)
    chunks = await events(local, asked)
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == "\ufffd"


async def test_several_choices_come_in_order_and_differ(local: LocalBackend) -> None:
    asked = {"n": 2, "seed": 5, "temperature": 1.5, "logit_bias": ON_AND_ON}
    answer = await local.complete(chat(**asked))
    body = json.loads(answer.body)
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["choices"][0]["message"] != body["choices"][1]["message"]
    assert body["usage"]["completion_tokens"] == 24
    assert [choice["message"]["content"] for choice in body["choices"]] == [
        *await texts(local, chat(**asked | {"n": 1})),
        *await texts(local, chat(**asked | {"n": 1, "seed": 6})),
    ]


# Streams


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_says_the_same_as_the_whole_answer(local: LocalBackend, n: int) -> None:
    asked = {"n": n, "seed": 5, "temperature": 1.5, "logit_bias": ON_AND_ON}
    chunks = await events(local, chat(stream=True, **asked))
    choices = [one["choices"][0] for one in chunks]
    said = ["".join(c["delta"].get("content", "") for c in choices if c["index"] == index) for index in range(n)]
    assert said == await texts(local, chat(**asked))
    for index in range(n):
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["length"]
    assert {(one["model"], one["id"], one["object"]) for one in chunks} == {
        ("ours", chunks[0]["id"], "chat.completion.chunk")
    }


async def test_usage_runs_along_with_every_event_and_is_shown_to_those_who_ask(local: LocalBackend) -> None:
    asked = {"stream": True, "logit_bias": ON_AND_ON}
    prompt_tokens = (await local.count(chat())).prompt_tokens
    running_counts = [event.usage async for event in local.stream(chat(**asked))]
    counts = [usage.completion_tokens for usage in running_counts if usage]
    assert (counts, counts[-1]) == (sorted(counts), 12)
    assert not any("choices" in one and not one["choices"] for one in await events(local, chat(**asked)))
    shown = await events(local, chat(**asked, stream_options={"include_usage": True}))
    shared = shown[-1]["usage"].pop("prompt_tokens_details")["cached_tokens"]
    assert 0 <= shared < prompt_tokens
    assert (shown[-1]["choices"], shown[-1]["usage"]) == (
        [],
        {"prompt_tokens": prompt_tokens, "completion_tokens": 12, "total_tokens": prompt_tokens + 12},
    )


async def test_a_client_who_leaves_frees_the_engine(synthetic_gguf: Path) -> None:
    async with running(synthetic_gguf, context_tokens=200_000) as backend:
        stream = backend.stream(chat(stream=True, max_tokens=150_000, logit_bias=ON_AND_ON))
        async with aclosing(stream) as chunks:
            await anext(chunks)
        async with asyncio.timeout(5):  # the abandoned answer alone would take minutes
            assert await texts(backend, chat())


async def test_a_full_queue_refuses_whole_answers_and_says_when_to_come_back(synthetic_gguf: Path) -> None:
    errors = await crowd(synthetic_gguf, stream=False)
    assert errors
    assert {type(error) for error in errors} == {UpstreamRefused}
    assert {(error.status, error.code) for error in errors} == {(429, "server_busy")}
    assert all(int(error.retry_after) > 0 for error in errors)


async def test_a_full_queue_refuses_streams_in_the_same_way(synthetic_gguf: Path) -> None:
    errors = await crowd(synthetic_gguf, stream=True)
    assert {type(error) for error in errors} == {UpstreamRefused}


async def crowd(path: Path, *, stream: bool) -> list[Any]:
    """What 262 callers are told while the engine is busy with a long answer."""
    async with running(path, context_tokens=200_000, slots=1) as backend:
        long = backend.stream(chat(stream=True, max_tokens=150_000, logit_bias=ON_AND_ON))
        async with aclosing(long) as chunks:
            await anext(chunks)
            asked = chat(stream=stream, max_tokens=1)
            callers = [
                asyncio.ensure_future(anext(backend.stream(asked)) if stream else backend.complete(asked))
                for _ in range(262)
            ]
            waiting = set(callers)
            while len(waiting) > 256:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for caller in waiting:
                caller.cancel()
            results = await asyncio.gather(*callers, return_exceptions=True)
    return [result for result in results if isinstance(result, Exception)]


# Legacy completions


async def test_legacy_prompts_may_be_several_and_token_ids(local: LocalBackend) -> None:
    asked = {"max_tokens": 4, "logit_bias": ON_AND_ON}
    one, two = [(await texts(local, legacy(prompt, **asked)))[0] for prompt in ("the road", "a bridge")]
    answer = await local.complete(legacy(["the road", "a bridge"], **asked))
    assert [choice["text"] for choice in json.loads(answer.body)["choices"]] == [one, two]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == (await local.count(legacy(["the road", "a bridge"]))).prompt_tokens
    assert (await local.count(legacy([1, 5, 9]))).prompt_tokens == 3
    assert len((await texts(local, legacy([1, 5, 9], **asked)))[0]) > 0


async def test_legacy_answers_have_sixteen_tokens_unless_told_otherwise(local: LocalBackend) -> None:
    answer = await local.complete(legacy("the", logit_bias=ON_AND_ON))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    nothing = json.loads((await local.complete(legacy("the", max_tokens=0))).body)
    assert (nothing["choices"][0]["text"], nothing["choices"][0]["finish_reason"]) == ("", "length")


# Refusals


async def test_a_prompt_beyond_the_window_says_so_in_tokens(local: LocalBackend) -> None:
    for asked, param in ((chat("road " * 300), "messages"), (legacy("road " * 300), "prompt")):
        error = await refused(local, asked)
        assert (error.status, error.code, error.param) == (400, "context_length_exceeded", param)
        size = (await local.count(asked)).prompt_tokens
        assert ("maximum context length is 256 tokens" in str(error), f"({size} in the prompt" in str(error)) == (
            True,
            True,
        )


async def test_prompt_and_answer_must_fit_together_to_the_token(local: LocalBackend) -> None:
    room = 256 - (await local.count(chat())).prompt_tokens
    answer = await local.complete(chat(max_tokens=room, logit_bias=ON_AND_ON))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == room
    assert (await refused(local, chat(max_tokens=room + 1))).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"functions": [{"name": "look"}]}, "functions"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"logit_bias": {str(len(TOKENS)): 1}}, "logit_bias"),
        ({"logit_bias": {"llama": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_it_cannot_do_is_refused_by_name(
    local: LocalBackend, fields: dict[str, Any], param: str, stream: bool
) -> None:
    asked = chat(stream=stream, **fields)
    with pytest.raises(UpstreamRefused) as caught:
        await (anext(local.stream(asked)) if stream else local.complete(asked))
    assert (caught.value.status, caught.value.param) == (400, param)


async def test_a_chat_model_does_not_embed(local: LocalBackend) -> None:
    error = await refused(local, embedding("x"))
    assert ("serves chat, not embeddings" in str(error), error.param) == (True, "model")


# Counting


async def test_counting_includes_the_template_and_control_tokens_written_by_users_count_as_text(
    local: LocalBackend,
) -> None:
    plain, forged = [await local.count(chat(text)) for text in ("", "<|end|>")]
    assert plain == PromptSize(prompt_tokens=plain.prompt_tokens, context_tokens=256)
    assert forged.prompt_tokens - plain.prompt_tokens == len("<|end|>")  # letter by letter, not one control token
    assert plain.prompt_tokens > 4


async def test_texts_are_counted_one_by_one_without_special_tokens(local: LocalBackend) -> None:
    assert await local.count_texts([" llama", "", " llama llama", "<s>"]) == [1, 0, 2, 3]


# The socket's other calls


@pytest.fixture(scope="module")
async def relay(local: LocalBackend) -> AsyncIterator[Relay]:
    async with local._member.awake() as relay:
        yield relay


async def test_a_prompt_can_be_looked_at_and_tokenised(relay: Relay) -> None:
    prompt = json.loads(await relay.post("/apply-template", chat("hi").body.raw))["prompt"]
    assert prompt == "<s><|user|>\nhi<|end|>\n<|assistant|>\n"
    tokens = [
        json.loads(await relay.post("/tokenize", json.dumps({"content": " llama", "add_special": special}).encode()))
        for special in (False, True)
    ]
    llama = TOKENS.index("▁llama".encode())
    assert tokens == [{"tokens": [llama]}, {"tokens": [1, llama]}]


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/health", "", 200),
        ("GET", "/models", "right", 200),
        ("GET", "/models", "", 401),
        ("POST", "/chat/completions", "wrong", 401),
        ("GET", "/chat/completions", "right", 405),
        ("POST", "/nothing", "right", 404),
        ("POST", "/chat/completions", "right", 400),
    ],
)
async def test_everything_but_health_needs_the_key_and_a_path_that_is_there(
    relay: Relay, method: str, path: str, key: str, status: int
) -> None:
    own: Http1Transport = relay._transport
    right = relay._whole_headers[0]["authorization"]
    transport = Http1Transport("http://worker/v1", socket_path=own._socket_path)
    headers = {"authorization": right if key == "right" else f"Bearer {key}"} if key else {}
    reply = await transport.send(Request(method, path, headers, b"nonsense" if method == "POST" else b"", Timeouts()))
    body = json.loads(b"".join([piece async for piece in pieces_of(reply)]))
    reply.close()
    await transport.aclose()
    assert (reply.status, status == 200 or bool(body["error"]["message"])) == (status, True)
    if path == "/models" and status == 200:
        assert (body["data"][0]["id"], body["data"][0]["context_tokens"]) == (settings().name, 256)


# Embeddings by a model without pooling of its own are another affair; see test_convert for a real embedding model.


async def test_the_name_of_the_model_is_the_one_the_client_asked_for(local: LocalBackend) -> None:
    assert json.loads((await local.complete(chat())).body)["model"] == "ours"
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", json.loads((await local.complete(chat())).body)["id"])
    assert (await refused(local, call(EMBEDDINGS, input="x"))).status == 400
