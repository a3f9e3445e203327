"""Compares with every vector. The right index for small collections, and the measure for the other one."""

import numpy as np

from retrieval.index import NOTHING, Keys, Nearest, Vectors, best, has_direction


class ExactIndex:
    def __init__(self) -> None:
        self._rows: dict[int, Vectors] = {}
        self._keys: Keys = np.zeros(0, np.uint64)
        self._matrix: Vectors | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, keys: Keys, vectors: Vectors) -> None:
        self._rows |= zip(keys.tolist(), vectors, strict=True)
        self._matrix = None

    def remove(self, keys: Keys) -> None:
        for key in keys.tolist():
            self._rows.pop(key, None)
        self._matrix = None

    def search(self, vector: Vectors, k: int, *, within: Keys | None = None) -> Nearest:
        if k < 1 or not self._rows or not has_direction(vector):
            return NOTHING
        matrix = self._stacked()
        if within is None:
            return best(self._keys, matrix @ vector, k)
        rows = np.flatnonzero(np.isin(self._keys, within))
        return best(self._keys[rows], matrix[rows] @ vector, k)

    def get(self, keys: Keys) -> tuple[Keys, Vectors]:
        there = [key for key in keys.tolist() if key in self._rows]
        if not there:
            return NOTHING.keys, np.zeros((0, 0), np.float32)
        return np.asarray(there, np.uint64), np.stack([self._rows[key] for key in there])

    def all(self) -> tuple[Keys, Vectors]:
        matrix = self._stacked()
        return self._keys, matrix

    def _stacked(self) -> Vectors:
        if self._matrix is None:
            self._keys = np.fromiter(self._rows, np.uint64, len(self._rows))
            self._matrix = np.stack(list(self._rows.values())) if self._rows else np.zeros((0, 0), np.float32)
        return self._matrix
