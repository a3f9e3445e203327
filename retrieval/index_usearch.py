"""HNSW by usearch, in memory."""

from pathlib import Path

import numpy as np
from usearch.index import Index

from retrieval.index import NOTHING, Keys, Nearest, Vectors, best, has_direction

EXACT_WITHIN = 2_000
"""Of so few allowed keys each is compared: quicker than walking a graph that is mostly forbidden, and nothing is missed."""

FETCHED_MOST = 8_000
"""A walk that has to bring home more takes longer than comparing does."""

WORN = 0.3
"""Removed, in parts of what is there."""

MARGIN = 1.5
"""More than the share of allowed keys says are fetched, since neighbours resemble each other in this, too."""


class UsearchIndex:
    def __init__(self, index: Index | None = None, *, removed: int = 0) -> None:
        self._index = index
        self._removed = removed
        """Since the graph was made; each leaves a node that leads to nothing, until it is used again."""

    def __len__(self) -> int:
        return len(self._index) if self._index is not None else 0

    def add(self, keys: Keys, vectors: Vectors) -> None:
        if not len(keys):
            return
        if self._index is None:
            # dtype by name: the default is chosen by hardware, and precision would not travel
            self._index = Index(ndim=vectors.shape[1], metric="cos", dtype="f16")
        self.remove(keys)  # a key that exists raises
        self._index.add(keys, np.ascontiguousarray(vectors, np.float32), threads=1)

    def remove(self, keys: Keys) -> None:
        if self._index is not None and len(keys):
            there = keys[np.asarray(self._index.contains(keys))]
            if len(there):
                self._index.remove(there)
                self._removed += len(there)

    @property
    def worn(self) -> bool:
        """So much was removed from it that searches may miss what is there."""
        return self._removed > WORN * max(1, len(self))

    def renewed(self) -> "UsearchIndex":
        """A new graph of the same vectors; takes as long as adding them did."""
        assert self._index is not None
        fresh = UsearchIndex()
        keys = np.asarray(self._index.keys, np.uint64)
        for start in range(0, len(keys), 10_000):
            fresh.add(*self.get(keys[start : start + 10_000]))
        return fresh

    def search(self, vector: Vectors, k: int, *, within: Keys | None = None) -> Nearest:
        if k < 1 or not len(self) or not has_direction(vector):  # NaN would rank first
            return NOTHING
        if within is None:
            return self._walk(vector, k)
        if len(within) <= EXACT_WITHIN:
            return self._compared(vector, k, within)
        return self._walk_within(vector, k, within)

    def _walk(self, vector: Vectors, k: int) -> Nearest:
        assert self._index is not None
        matches = self._index.search(vector, min(k, len(self)), threads=1)
        return Nearest(np.asarray(matches.keys, np.uint64), 1.0 - np.asarray(matches.distances, np.float32))

    def _walk_within(self, vector: Vectors, k: int, within: Keys) -> Nearest:
        """Fetch more until enough of them are allowed; the last resort is to compare with all that are."""
        fetched = int(k * MARGIN * len(self) / len(within)) + k
        while fetched <= FETCHED_MOST:
            found = self._walk(vector, fetched)
            allowed = np.isin(found.keys, within)
            if allowed.sum() >= min(k, len(within)):
                return Nearest(found.keys[allowed][:k], found.scores[allowed][:k])
            fetched *= 2
        return self._compared(vector, k, within)

    def _compared(self, vector: Vectors, k: int, within: Keys) -> Nearest:
        keys, vectors = self.get(within)
        return best(keys, vectors @ vector, k) if len(keys) else NOTHING

    def get(self, keys: Keys) -> tuple[Keys, Vectors]:
        if self._index is None or not len(keys):
            return NOTHING.keys, np.zeros((0, 0), np.float32)
        there = keys[np.asarray(self._index.contains(keys))]
        if not len(there):
            return NOTHING.keys, np.zeros((0, 0), np.float32)
        vectors = np.asarray(np.vstack(self._index.get(there)), np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # of half precision
        return there, np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)

    def save(self, path: Path) -> None:
        assert self._index is not None
        self._index.save(str(path))

    @classmethod
    def load(cls, path: Path, dimensions: int) -> "UsearchIndex":
        """
        Raises:
            ValueError, RuntimeError: no such index, or one of other vectors.
        """
        about = Index.metadata(str(path))
        if about is None or int(about["dimensions"]) != dimensions:  # loading would change the dimensions silently
            raise ValueError("it holds vectors of other dimensions")
        index = Index(ndim=dimensions, metric="cos", dtype="f16")
        index.load(str(path))
        return cls(index, removed=int(about["count_deleted"]))
