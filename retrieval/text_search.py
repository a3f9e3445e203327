"""The nearest of the cached texts. An index for each owner and space, made when first asked and brought up to date at each search."""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.embedding_cache import EmbeddingCache
from retrieval.index import EXACT_UPTO, VectorIndex
from retrieval.indexes import make_index

INDEXES = 8
"""Kept; the longest unused one goes."""

KEYS_AT_ONCE = 5000


class Near(NamedTuple):
    text: str
    score: float
    """Cosine."""


class _Shelf:
    """The texts of one owner and space, with their index."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.begin_anew(0)

    def begin_anew(self, expected: int) -> None:
        self.texts: dict[bytes, str] = {}
        self.numbers: dict[bytes, int] = {}
        self.keys: list[bytes] = []
        self.index: VectorIndex = make_index(expected)

    def remove(self, keys: set[bytes]) -> None:
        for key in keys:
            del self.texts[key]
        self.index.remove(np.asarray([self.numbers.pop(key) for key in keys], np.uint64))

    def add(self, texts: dict[bytes, str], vectors: list[NDArray[np.float32]]) -> None:
        matrix = unit(np.stack(vectors))  # before anything changes: it may fail
        first = len(self.keys)
        self.keys += texts
        self.texts |= texts
        self.numbers |= {key: first + place for place, key in enumerate(texts)}
        self.index.add(np.arange(first, first + len(texts), dtype=np.uint64), matrix)


class TextSearch:
    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache
        self._shelves: OrderedDict[tuple[str, bytes], _Shelf] = OrderedDict()

    async def nearest(self, vector: NDArray[np.float32], k: int, *, owner: str, space: bytes) -> list[Near]:
        """At most `k` texts that `owner` may see, nearest first.

        Raises:
            SQLAlchemyError: the store cannot be read.
        """
        shelf = self._shelf(owner, space)
        async with shelf.turn:
            await self._bring_up_to_date(shelf, owner, space)
            length = float(np.linalg.norm(vector))
            wanted = (vector / length).astype(np.float32) if length > 0 else vector
            found = await asyncio.to_thread(shelf.index.search, wanted, k)
            pairs = zip(found.keys.tolist(), found.scores.tolist(), strict=True)
            return [Near(shelf.texts[shelf.keys[number]], score) for number, score in pairs]

    def _shelf(self, owner: str, space: bytes) -> _Shelf:
        shelf = self._shelves.setdefault((owner, space), _Shelf())
        self._shelves.move_to_end((owner, space))
        if len(self._shelves) > INDEXES:
            self._shelves.popitem(last=False)
        return shelf

    async def _bring_up_to_date(self, shelf: _Shelf, owner: str, space: bytes) -> None:
        await self._cache.flush()
        present = await self._cache.store.searchable(owner, space)
        if len(shelf.texts) <= EXACT_UPTO < len(present):
            shelf.begin_anew(len(present))
        shelf.remove(shelf.texts.keys() - present.keys())
        new = [key for key in present if key not in shelf.texts]
        for start in range(0, len(new), KEYS_AT_ONCE):
            found, _ = await self._cache.store.get(new[start : start + KEYS_AT_ONCE])
            if found:
                texts = {key: present[key] for key in found}
                await asyncio.to_thread(shelf.add, texts, [one.vector for one in found.values()])


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
