"""Texts of many requests through one engine, in turn."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.llamacpp.embedding_queue import EmbeddingQueue

pytestmark = pytest.mark.anyio

BUDGET = 10


class CountingEngine:
    sequences = 16
    batch_tokens = 512

    """A text's vector is its tokens' sum; calls are written down."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def embed(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        self.gate.wait(10)
        self.calls.append([list(text) for text in texts])
        if any(13 in text for text in texts):
            raise RuntimeError("a bad call")
        return [np.asarray([sum(text)], np.float32) for text in texts]

    def close(self) -> None:
        pass


@asynccontextmanager
async def queue() -> AsyncIterator[tuple[EmbeddingQueue, CountingEngine]]:
    engine = CountingEngine()
    queue = EmbeddingQueue(lambda: engine, name="m", max_waiting=100, batch_tokens=BUDGET)  # type: ignore[arg-type,return-value]
    await queue.start()
    try:
        yield queue, engine
    finally:
        engine.gate.set()
        queue.close()


def sums(vectors: list[NDArray[np.float32]]) -> list[int]:
    return [int(vector[0]) for vector in vectors]


async def test_each_request_gets_its_vectors_in_its_order() -> None:
    requests = [[[number * 100 + place] * (place % 4 + 1) for place in range(1, 12)] for number in range(1, 6)]
    async with queue() as (embedder, engine):
        answers = await asyncio.gather(*(embedder.embed(inputs) for inputs in requests))
    assert [sums(answer) for answer in answers] == [[sum(text) for text in inputs] for inputs in requests]
    for call in engine.calls:
        assert len(call) == 1 or sum(map(len, call)) <= BUDGET
        assert len(call) <= CountingEngine.sequences


async def test_short_texts_share_a_call_and_a_long_one_travels_alone() -> None:
    async with queue() as (embedder, engine):
        engine.gate.clear()
        first = asyncio.ensure_future(embedder.embed([[1]]))
        others = [asyncio.ensure_future(embedder.embed([[2] * size])) for size in (3, 3, 3, 40, 1)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *others)
    sizes = [list(map(len, call)) for call in engine.calls]
    assert [40] in sizes
    assert all(sum(call) <= BUDGET for call in sizes if call != [40])
    assert len(sizes) <= 4


async def test_a_request_with_many_texts_holds_nobody_up() -> None:
    async with queue() as (embedder, engine):
        engine.gate.clear()
        long = asyncio.ensure_future(embedder.embed([[1] * 8] * 200))
        short = asyncio.ensure_future(embedder.embed([[5]]))
        while embedder.waiting < 1:
            await asyncio.sleep(0)
        engine.gate.set()
        assert sums(await short) == [5]
        place = next(number for number, call in enumerate(engine.calls) if [5] in call)
        await long
    assert place <= 3


async def test_who_has_left_costs_nothing_more() -> None:
    async with queue() as (embedder, engine):
        engine.gate.clear()
        leaving = asyncio.ensure_future(embedder.embed([[1] * 9] * 50))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        engine.gate.set()
        assert sums(await embedder.embed([[7]])) == [7]
    assert len(engine.calls) <= 2


async def test_a_call_that_fails_is_told_to_those_who_had_a_part_in_it() -> None:
    async with queue() as (embedder, _):
        with pytest.raises(RuntimeError, match="a bad call"):
            await embedder.embed([[13], [1]])
        assert sums(await embedder.embed([[2], [3]])) == [2, 3]
