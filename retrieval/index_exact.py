"""Compares with every vector. The right index for small collections, and the measure for the other one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ExactIndex:
    def __init__(self) -> None:
        self._vectors: dict[int, NDArray[np.float32]] = {}
        self._ids = np.zeros(0, np.int64)
        self._matrix: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._vectors)

    def add(self, ids: Sequence[int], vectors: NDArray[np.float32]) -> None:
        self._vectors |= zip(ids, vectors, strict=True)
        self._matrix = None

    def remove(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            self._vectors.pop(id_, None)
        self._matrix = None

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        if not self._vectors or not _has_direction(vector):
            return []
        scores = self._stacked() @ vector
        k = min(k, len(scores))
        best = np.argpartition(-scores, k - 1)[:k]
        best = best[np.lexsort((self._ids[best], -scores[best]))]
        return [(int(self._ids[place]), float(scores[place])) for place in best]

    def similarity(self, vector: NDArray[np.float32], ids: Sequence[int]) -> dict[int, float]:
        return {id_: float(self._vectors[id_] @ vector) for id_ in ids if id_ in self._vectors}

    def _stacked(self) -> NDArray[np.float32]:
        if self._matrix is None:
            self._ids = np.fromiter(self._vectors, np.int64, len(self._vectors))
            self._matrix = np.stack(list(self._vectors.values()))
        return self._matrix


def _has_direction(vector: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(vector).all() and vector.any())
