"""Requests beside each other in a real worker, seen from its callers."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Call
from backends.llamacpp.backend import LocalBackend
from tests.backends.llamacpp.local import chat, running, texts
from tests.backends.llamacpp.test_api import ON_AND_ON

pytestmark = pytest.mark.anyio


async def test_many_callers_wait_for_each_other_and_get_the_answer_each_would_get_alone(local: LocalBackend) -> None:
    asked = [chat(f"question {number}", max_tokens=3, logit_bias=ON_AND_ON) for number in range(8)]
    together = await asyncio.gather(*(texts(local, one) for one in asked))
    assert together == [await texts(local, one) for one in asked]


async def test_a_waiting_caller_who_leaves_does_not_hold_up_the_others(local: LocalBackend) -> None:
    callers = [asyncio.create_task(texts(local, chat())) for _ in range(3)]
    callers[1].cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert (results[0] == results[2], isinstance(results[1], asyncio.CancelledError)) == (True, True)


def asked_by(key: str, role: str, words: str) -> Call:
    return replace(chat(words, max_tokens=2), caller=key, role=role)


async def shared(backend: LocalBackend, call: Call) -> int:
    answer = await backend.complete(call)
    assert answer.usage is not None
    return answer.usage.cached_tokens


@pytest.mark.parametrize(
    ("sharing", "same_key", "same_role", "others"),
    [("key", True, False, False), ("role", True, True, False), ("all", True, True, True)],
)
async def test_a_prompt_begins_where_one_left_that_may_be_shared(
    synthetic_gguf: Path, sharing: str, same_key: bool, same_role: bool, others: bool
) -> None:
    async with running(synthetic_gguf) as backend:
        backend._sharing = sharing
        words = "the runner carries a message over the high bridge " * 3
        assert await shared(backend, asked_by("key_1", "team", words + "one")) == 0
        found = [
            await shared(backend, asked_by("key_1", "team", words + "two")) > 20,
            await shared(backend, asked_by("key_2", "team", words + "three")) > 20,
        ]
        strangers = [await shared(backend, asked_by("key_3", "guests", words + "four")) > 20]
        assert found + strangers == [same_key, same_role, others]


async def test_what_is_shared_changes_no_word(local: LocalBackend) -> None:
    words = "the llama rests near the pass and the river runs below " * 3
    first = await texts(local, chat(words, max_tokens=20))
    assert [await texts(local, chat(words, max_tokens=20)) for _ in range(3)] == [first] * 3
    assert await shared(local, chat(words, max_tokens=20)) > 20


@pytest.mark.parametrize("serves", ["chat", "embeddings"])
async def test_a_worker_that_is_told_to_stop_stops_by_itself(
    synthetic_gguf: Path, minilm_gguf: Path, serves: str
) -> None:
    """What llama.cpp has made is freed as it was made: anything else is an abort."""
    model = synthetic_gguf if serves == "chat" else minilm_gguf
    command = [sys.executable, "-m", "backends.llamacpp.worker", "--model", str(model), "--serves", serves]
    environment = {**os.environ, "CHASQUI_WORKER_KEY": "k" * 20}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, "--port", "0", env=environment, stderr=pipe)
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while b"serving" not in (line := await process.stderr.readline()):
            assert line, "the worker ended"
        process.send_signal(signal.SIGTERM)
        words = await process.stderr.read()
        assert await process.wait() in (0, -signal.SIGTERM), words.decode()


async def test_what_is_no_clients_secret_is_shared_with_everybody(synthetic_gguf: Path) -> None:
    """A template's messages and a collection's text, but not a letter of what a client has said behind them."""
    system, passages = "You answer from the handbook, and briefly.", "[1] The road runs over the high bridge."

    def asked(key: str, role: str, question: str, *, public: tuple[int, int]) -> Call:
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"{passages} {question}"},
        ]
        return replace(asked_by(key, role, ""), body=chat(messages=messages).body, public=public)

    async with running(synthetic_gguf, context_tokens=2048) as backend:
        question = "who carries the message over the bridge"
        assert await shared(backend, asked("k1", "r1", question, public=(1, len(passages)))) == 0
        both = await shared(backend, asked("k2", "r2", question, public=(1, len(passages))))
        own = await shared(backend, asked("k1", "r1", question, public=(1, len(passages))))
        assert 0 < both < own
        known = asked("k3", "r3", question, public=(1, len(passages)))
        head = replace(known, body=known.body.replace(messages=[{"role": "system", "content": system}]))
        system_tokens, prompt_tokens = [(await backend.count(one)).prompt_tokens for one in (head, known)]
        assert system_tokens - 5 < both < prompt_tokens - len(question.split())


async def test_without_a_word_from_the_gateway_nothing_is_public(synthetic_gguf: Path) -> None:
    async with running(synthetic_gguf, context_tokens=2048) as backend:
        words = "the road runs over the high bridge and the stone mountain"
        assert await shared(backend, asked_by("k1", "r1", words)) == 0
        assert await shared(backend, asked_by("k2", "r2", words)) == 0


async def test_what_a_client_adds_to_what_is_public_is_not(synthetic_gguf: Path) -> None:
    """Its tools, and names and calls of messages: most templates put them first."""
    tool = {"type": "function", "function": {"name": "secret_of_ours", "description": "a long secret " * 5}}
    system = {"role": "system", "content": "You answer from the handbook."}
    user = {"role": "user", "content": "the road and the river"}

    def asked(key: str, **fields: Any) -> Call:
        body = chat(**({"messages": [system, user]} | fields)).body
        return replace(asked_by(key, key, ""), body=body, public=(1, 0))

    async with running(synthetic_gguf, context_tokens=2048) as backend:
        base = await shared(backend, asked("k1"))
        assert base == 0
        public = await shared(backend, asked("k2"))
        assert public > 0
        assert await shared(backend, asked("k1", tools=[tool])) <= public
        assert await shared(backend, asked("k2", tools=[tool])) <= public
        named = [system | {"name": "a name that is a secret of ours"}, user | {"name": "and another"}]
        assert await shared(backend, asked("k3", messages=named)) <= public + 1
        assert await shared(backend, asked("k4", messages=named)) <= public + 1
