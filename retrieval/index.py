"""Nearest vectors. An index is made from the catalog and can be thrown away at any time."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.catalog import ChunkId
from retrieval.index_exact import ExactIndex
from retrieval.index_usearch import UsearchIndex

EXACT_UPTO = 20_000
"""Below this, comparing with every vector takes well under a millisecond and misses nothing."""


class VectorIndex(Protocol):
    """Vectors are float32, unit length, of one dimension. Similarity is the cosine, in [-1, 1]."""

    def __len__(self) -> int: ...

    def add(self, ids: Sequence[ChunkId], vectors: NDArray[np.float32]) -> None:
        """Ids that are there already get the new vector."""
        ...

    def remove(self, ids: Sequence[ChunkId]) -> None:
        """Unknown ids are ignored."""
        ...

    def search(self, vector: NDArray[np.float32], k: int) -> list[tuple[ChunkId, float]]:
        """At most `k`, nearest first. A vector without direction (zero, NaN) is near to nothing."""
        ...

    def similarity(self, vector: NDArray[np.float32], ids: Sequence[ChunkId]) -> dict[ChunkId, float]:
        """Cosine of `vector` with the ids that are there."""
        ...


def make_index(expected: int) -> VectorIndex:
    return ExactIndex() if expected <= EXACT_UPTO else UsearchIndex()
