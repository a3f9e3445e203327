"""The vectors that were used last, in memory: in front of the store, bounded by number and bytes. Pure."""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OVERHEAD_BYTES = 400
"""Of an entry beside its numbers: key, array and place in the dictionary, as measured."""


class CachedVector(NamedTuple):
    vector: NDArray[np.float32]
    tokens: int


class VectorMemory:
    """
    Args:
        max_bytes: with the overhead of each.
    """

    def __init__(self, *, max_vectors: int, max_bytes: int) -> None:
        self._max_vectors = max_vectors
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, CachedVector] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> CachedVector | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, value: CachedVector) -> None:
        self.drop(key)
        self._entries[key] = value
        self.bytes += value.vector.nbytes + OVERHEAD_BYTES
        while self._entries and (len(self._entries) > self._max_vectors or self.bytes > self._max_bytes):
            self.drop(next(iter(self._entries)))

    def drop(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= found.vector.nbytes + OVERHEAD_BYTES

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0
