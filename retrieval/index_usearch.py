"""HNSW by usearch, in memory. Made from the catalog at start."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index

from retrieval.index_exact import _has_direction


class UsearchIndex:
    def __init__(self) -> None:
        self._index: Index | None = None

    def __len__(self) -> int:
        return len(self._index) if self._index is not None else 0

    def add(self, ids: Sequence[int], vectors: NDArray[np.float32]) -> None:
        if not ids:
            return
        if self._index is None:
            # dtype by name: the default is chosen by hardware, and precision would not travel
            self._index = Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
        self.remove(ids)  # a key that exists raises
        self._index.add(np.asarray(ids, np.uint64), np.ascontiguousarray(vectors, np.float32), threads=1)

    def remove(self, ids: Sequence[int]) -> None:
        if self._index is not None:
            for id_ in ids:
                if id_ in self._index:
                    self._index.remove(id_)

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        if not len(self) or not _has_direction(vector):  # NaN would rank first
            return []
        assert self._index is not None
        matches = self._index.search(vector, min(k, len(self)), threads=1)
        return [
            (int(key), 1.0 - float(distance)) for key, distance in zip(matches.keys, matches.distances, strict=True)
        ]

    def similarity(self, vector: NDArray[np.float32], ids: Sequence[int]) -> dict[int, float]:
        if self._index is None:
            return {}
        found = {id_: self._index.get(id_) for id_ in ids if id_ in self._index}
        return {id_: float(np.asarray(stored, np.float32).ravel() @ vector) for id_, stored in found.items()}
