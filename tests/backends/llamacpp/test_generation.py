"""Continuous batching over an engine that keeps honest books of its cells."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.errors import BackendBusy
from backends.llamacpp.generation import KEPT_BEGINNINGS, PROMPT_BESIDE_STREAMS, Generator
from backends.llamacpp.sampling import Sampling
from backends.llamacpp.sequences import Ask
from tests.backends.llamacpp.fake_engine import FakeEngine, alone

pytestmark = pytest.mark.anyio

SLOTS = 3


@asynccontextmanager
async def generating(cells: int = 200, **options: Any) -> AsyncIterator[Generator]:
    batch = options.pop("batch", 16)
    gate = options.pop("gate", None)
    slots = options.pop("slots", SLOTS)
    engine = FakeEngine(cells=cells, sequences=slots * KEPT_BEGINNINGS, batch=batch, gate=gate)
    generator = Generator(lambda: engine, name="m", slots=slots, max_waiting=options.pop("max_waiting", 100))  # type: ignore[arg-type,return-value]
    await generator.start()
    try:
        yield generator
    finally:
        generator.close()
        assert engine.closed
        assert engine.chains == 0


async def say(generator: Generator, prompt: list[int], max_tokens: int, **options: Any) -> tuple[list[int], str]:
    text, finish = "", ""
    asked = generator.generate(Ask(prompt, Sampling(), max_tokens, **options))
    async with aclosing(asked) as steps:
        async for step in steps:
            text += step.text
            finish = step.finish or finish
    return [int(word) for word in text.split()], finish


def fake(generator: Generator) -> FakeEngine:
    return generator.engine  # type: ignore[return-value]


async def settled(generator: Generator) -> None:
    """Until the thread has nothing to do any more."""
    while generator.running or generator.waiting:
        await asyncio.sleep(0)


async def test_sequences_beside_each_other_say_what_each_would_say_alone() -> None:
    prompts = [[number, 5, 6 + number, 7] for number in range(1, 9)]
    async with generating() as generator:
        said = await asyncio.gather(*(say(generator, prompt, 12) for prompt in prompts))
        steps = generator.counters.steps
    assert list(said) == [alone(prompt, 12) for prompt in prompts]
    assert steps < 8 * 12 / 2


async def test_a_prompt_starts_where_one_of_its_scope_left_cells() -> None:
    async with generating() as generator:
        first = await say(generator, [3, 1, 4, 1, 5, 9, 2, 6], 4, scope="team")
        before = generator.counters.prompt_tokens
        second = await say(generator, [3, 1, 4, 1, 5, 9, 2, 7], 4, scope="team")
        assert generator.counters.shared_tokens == 7
        assert generator.counters.prompt_tokens - before == 1
        await say(generator, [3, 1, 4, 1, 5, 9, 2, 8], 4, scope="others")
        assert generator.counters.shared_tokens == 7, "another scope shares nothing"
    assert (first, second) == (alone([3, 1, 4, 1, 5, 9, 2, 6], 4), alone([3, 1, 4, 1, 5, 9, 2, 7], 4))


async def test_a_long_prompt_leaves_room_for_those_who_are_speaking() -> None:
    """Each step that somebody speaks in takes a bounded part of a prompt."""
    sizes: list[int] = []
    async with generating(cells=3000, batch=512) as generator:
        engine = fake(generator)
        decode = engine.decode

        def noted() -> int:
            if len(engine.batch.parts) > 1:
                sizes.append(max(len(tokens) for tokens, *_ in engine.batch.parts))
            return decode()

        engine.decode = noted  # type: ignore[method-assign]
        speaker = asyncio.ensure_future(say(generator, [1, 2, 3], 400))
        while not generator.counters.generated_tokens:
            await asyncio.sleep(0)
        await say(generator, [number % 40 + 1 for number in range(1000)], 2)
        await speaker
    assert sizes
    assert max(sizes) == PROMPT_BESIDE_STREAMS


async def test_what_is_kept_for_later_goes_before_anybody_has_to_wait() -> None:
    async with generating(cells=40) as generator:
        for number in range(1, 6):
            assert await say(generator, [number] * 10, 8, scope=str(number)) == alone([number] * 10, 8)
        assert generator.counters.preempted == 0


async def test_the_newest_goes_back_to_waiting_when_the_cells_run_out_and_loses_nothing() -> None:
    """The pool says no in the middle, though what was promised fitted: llama.cpp may need more than we count."""
    async with generating(cells=120) as generator:
        engine, calls = fake(generator), iter(range(1000))
        decode = engine.decode
        engine.decode = lambda: 1 if next(calls) in (5, 6) else decode()  # type: ignore[method-assign]
        said = await asyncio.gather(*(say(generator, [number, 8, 9], 30) for number in (1, 2, 3)))
        assert generator.counters.preempted == 2
    assert said == [alone([number, 8, 9], 30) for number in (1, 2, 3)]


async def test_when_there_are_fewer_cells_than_promised_the_oldest_go_on_and_all_end() -> None:
    """Whoever had to wait must not take the same cells again before somebody has ended."""
    async with generating(cells=200) as generator:
        fake(generator).cells = 45
        async with asyncio.timeout(20):
            said = await asyncio.gather(
                *(say(generator, [number, 8, 9], 30, scope=str(number)) for number in (1, 2, 3))
            )
        assert generator.counters.preempted > 0
    assert said == [alone([number, 8, 9], 30) for number in (1, 2, 3)]


@pytest.mark.parametrize("code", [-1, -3, 2])
async def test_a_step_that_fails_is_told_to_all_and_the_next_request_is_fine(code: int) -> None:
    async with generating() as generator:
        fake(generator).codes = [code]
        said = await asyncio.gather(*(say(generator, [number, 5], 4) for number in (1, 2)), return_exceptions=True)
        assert any(isinstance(one, RuntimeError) for one in said)
        assert await say(generator, [1, 5], 4) == alone([1, 5], 4)


async def test_a_full_queue_says_so() -> None:
    gate = threading.Event()
    async with generating(max_waiting=2, slots=1, gate=gate) as generator:
        first = asyncio.ensure_future(say(generator, [1, 2], 2))
        while not generator.running:
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(say(generator, [1, 2], 2)) for _ in range(3)]
        done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        assert {type(one.exception()) for one in done} == {BackendBusy}
        gate.set()
        await asyncio.gather(first, *others, return_exceptions=True)


async def test_a_stop_string_ends_a_sequence_and_frees_its_place() -> None:
    words, _ = alone([4, 4], 20)
    async with generating() as generator:
        said = await say(generator, [4, 4], 20, stops=[f" {words[2]} "])
        await settled(generator)
    assert said == (words[:2], "stop")


PROMPT = st.lists(st.integers(1, 6), min_size=1, max_size=12)
REQUEST = st.tuples(PROMPT, st.integers(1, 15), st.sampled_from("ab"), st.integers(0, 12))
"""(prompt, longest answer, scope, steps to wait for; 0: all of them)"""


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(REQUEST, min_size=1, max_size=14), cells=st.integers(30, 90), slots=st.integers(1, 4))
async def test_whatever_comes_and_goes_every_request_ends_once_and_no_cell_is_lost(
    requests: list[tuple[list[int], int, str, int]], cells: int, slots: int
) -> None:
    async with generating(cells=cells, slots=slots, batch=8) as generator:

        async def client(prompt: list[int], max_tokens: int, scope: str, patience: int) -> Any:
            if patience == 0:
                return await say(generator, prompt, max_tokens, scope=scope)
            asked = generator.generate(Ask(prompt, Sampling(), max_tokens, scope=scope))
            async with aclosing(asked) as steps:
                with suppress(StopAsyncIteration):
                    for _ in range(patience):
                        await anext(steps)
            return None

        said = await asyncio.gather(*(client(*request) for request in requests))
        await settled(generator)
        for (prompt, max_tokens, _, patience), answer in zip(requests, said, strict=True):
            if patience == 0:
                assert answer == alone(prompt, max_tokens)
        engine = fake(generator)
        kept = {resident.sequence: resident.tokens.tolist() for resident in generator._prefixes._idle.values()}
        assert all(engine.tokens_of(sequence) == tokens for sequence, tokens in kept.items())
        assert set(kept) | set(generator._free or ()) == set(range(engine.sequences)) or generator._free is None
        for sequence in list(kept):
            engine.forget(sequence)
        assert engine.used == 0, "cells that nobody knows of"
        assert engine.chains == 0
