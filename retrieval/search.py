"""A question -> passages: embed, look up in both indexes, fuse, filter. A search that fails is an error, never an empty context."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.errors import UpstreamRefused
from retrieval.catalog import Catalog, Chunk
from retrieval.embedding import Embedder
from retrieval.errors import CollectionNotReady
from retrieval.fusion import fuse
from retrieval.index import VectorIndex
from retrieval.lexical import LexicalIndex
from retrieval.settings import RetrievalSettings

CANDIDATES = 40
"""From each leg, before they are fused."""

DAMPING = 10
"""Flatter than the source's 60: with two legs, the first ranks should count for more."""


class Found(NamedTuple):
    chunk: Chunk
    score: float
    """Cosine between question and chunk, cut to [0, 1]."""


class Searcher:
    """One collection's search. `index` is filled by ingestion, which sets `ready` once."""

    def __init__(
        self, collection: str, *, catalog: Catalog, embedder: Embedder, lexical: LexicalIndex, index: VectorIndex
    ) -> None:
        self.collection = collection
        self.index = index
        self.ready = False
        self.state = "waiting to be indexed"
        self._catalog = catalog
        self._embedder = embedder
        self._lexical = lexical

    async def search(self, query: str, settings: RetrievalSettings, *, request_id: str) -> list[Found]:
        """At most `top_k`, best first.

        Raises:
            CollectionNotReady, BackendError
        """
        if not self.ready:
            raise CollectionNotReady(self.collection, self.state)
        if not query.strip():
            return []
        vector = await self._vector(query, request_id)
        rankings: list[Sequence[int]] = []
        if settings.mode != "lexical":
            rankings.append([id_ for id_, _ in self.index.search(vector, CANDIDATES)])
        if settings.mode != "dense":
            rankings.append(await self._lexical.search(self.collection, query, CANDIDATES))
        order = [id_ for id_, _ in fuse(rankings, damping=DAMPING)]
        similarity = self.index.similarity(vector.astype(np.float32), order)
        chosen = [id_ for id_ in order if max(0.0, similarity.get(id_, 0.0)) >= settings.min_score][: settings.top_k]
        chunks = await self._catalog.chunks(self.collection, chosen)
        return [Found(chunks[id_], min(1.0, max(0.0, similarity.get(id_, 0.0)))) for id_ in chosen if id_ in chunks]

    async def _vector(self, query: str, request_id: str) -> NDArray[np.float32]:
        """Of the question, or of as much of its end as the embedding model reads: there the question usually is."""
        while True:
            try:
                matrix = await self._embedder.vectors([query], request_id=request_id)
            except UpstreamRefused as exc:
                if exc.code != "context_length_exceeded" or len(query) < 2:
                    raise
                query = query[len(query) // 2 :]
            else:
                vector: NDArray[np.float32] = matrix[0]
                return vector
