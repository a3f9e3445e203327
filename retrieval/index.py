"""Nearest vectors. An index is made from the database and can be thrown away at any time."""

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
Vectors: TypeAlias = NDArray[np.float32]

EXACT_UPTO = 20_000
"""Below this, comparing with every vector takes well under a millisecond and misses nothing."""


class Nearest(NamedTuple):
    keys: Keys
    scores: Vectors
    """Cosine, in [-1, 1], of each."""


class VectorIndex(Protocol):
    """Vectors are float32, unit length, of one dimension. Keys are given once."""

    def __len__(self) -> int: ...

    def add(self, keys: Keys, vectors: Vectors) -> None:
        """Keys that are there already get the new vector."""
        ...

    def remove(self, keys: Keys) -> None:
        """Unknown keys are ignored."""
        ...

    def search(self, vector: Vectors, k: int, *, within: Keys | None = None) -> Nearest:
        """At most `k`, nearest first. A vector without direction (zero, NaN) is near to nothing.

        Args:
            within: only these, sorted; the nearest of them are found however few they are among all.
        """
        ...

    def get(self, keys: Keys) -> tuple[Keys, Vectors]:
        """Those of the keys that are there, with their vectors [n, dim]."""
        ...


NOTHING = Nearest(np.zeros(0, np.uint64), np.zeros(0, np.float32))


def has_direction(vector: Vectors) -> bool:
    return bool(np.isfinite(vector).all() and vector.any())


def best(keys: Keys, scores: Vectors, k: int) -> Nearest:
    """The `k` highest, ties by key."""
    k = min(k, len(scores))
    if k == 0:
        return NOTHING
    chosen = np.argpartition(-scores, k - 1)[:k]
    chosen = chosen[np.lexsort((keys[chosen], -scores[chosen]))]
    return Nearest(keys[chosen], scores[chosen])
