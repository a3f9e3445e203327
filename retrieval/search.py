"""A question -> passages: embed, look up by meaning and by words, fuse, rerank, filter.

A search that fails is an error. Where one of the two ways of looking fails, the other one answers, and the answer says so.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import DBAPIError

from backends.errors import BackendError, UpstreamRefused
from retrieval.candidates import BALANCE, Candidate, Weights, across, is_new, joined, merged, ranked
from retrieval.catalog import Stored
from retrieval.documents import Chunk
from retrieval.embedding import Embedder
from retrieval.errors import CollectionNotReady, EmbeddingFailed
from retrieval.filters import check
from retrieval.library import Library
from retrieval.reranking import Reranker
from retrieval.settings import RetrievalSettings
from retrieval.tables import ChunkId, DocumentId
from retrieval.view import View

log = logging.getLogger("chasqui.collections")

QUERY_CHARS = 8_000
"""Of a question, its end: there the question usually is, and no model reads more."""

SPARE = 4
"""Read from the database beyond what is wanted, in case that some repeat each other."""

EMBEDDER_FAILS = (BackendError, EmbeddingFailed)


class Found(NamedTuple):
    chunk: Chunk
    score: float
    """In [0, 1]: cosine between question and chunk; what a reranker says, where there is one; of a chunk that was found by words
    alone, its place."""
    text: str
    """Of the chunk, with its neighbours where they were asked for."""


@dataclass(slots=True)
class Findings:
    found: list[Found] = field(default_factory=list)
    """Best first."""
    degraded: list[str] = field(default_factory=list)
    """The ways of looking that failed: dense, lexical, rerank."""


@dataclass(slots=True)
class _Asked:
    """One search, on its way through the collections."""

    settings: RetrievalSettings
    condition: Any
    weights: Weights
    request_id: str
    vectors: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)
    """By the embedding backend and the question."""
    degraded: list[str] = field(default_factory=list)


class Searcher:
    """
    Args:
        embedders: by backend.
        rerankers: by backend.
    """

    def __init__(self, library: Library, embedders: Mapping[str, Embedder], rerankers: Mapping[str, Reranker]) -> None:
        self.library = library
        self._embedders = embedders
        self._rerankers = rerankers

    async def search(
        self,
        collections: Sequence[Stored],
        queries: Sequence[str],
        settings: RetrievalSettings,
        *,
        request_id: str,
        condition: Any = None,
        weights: Weights = BALANCE,
    ) -> Findings:
        """At most `top_k` passages. Several queries are searched one by one, and their rankings fused.

        Args:
            condition: over attributes, see `filters.py`.
            weights: of looking by meaning and by words.

        Raises:
            CollectionNotReady, FilterInvalid, BackendError, SQLAlchemyError
        """
        if condition is not None:
            check(condition)
        queries = [query.strip()[-QUERY_CHARS:] for query in dict.fromkeys(queries) if query.strip()]
        if not queries:
            return Findings()
        asked = _Asked(settings, condition, weights, request_id)
        candidates = across(
            [merged([await self._candidates(stored, query, asked) for query in queries]) for stored in collections]
        )
        if settings.rerank:
            found = await self._gathered(candidates, settings.candidates, least=0.0)
            found = await self._reranked(queries[0], found, asked)
            found = [one for one in found if one.score >= settings.min_score][: settings.top_k]
        else:
            found = await self._gathered(candidates, settings.top_k, least=settings.min_score)
        if settings.neighbours:
            found = await self._with_neighbours(found, settings.neighbours)
        return Findings(found, list(dict.fromkeys(asked.degraded)))

    async def _gathered(self, candidates: Sequence[Candidate], wanted: int, *, least: float) -> list[Found]:
        """The best that score enough, that are still there, and that do not say what a better one has said."""
        left = [one for one in candidates if one.score >= least]
        found: list[Found] = []
        known: list[frozenset[str]] = []
        while left and len(found) < wanted:
            some, left = left[: wanted + SPARE], left[wanted + SPARE :]
            chunks = await self.library.documents.chunks([one.id for one in some])
            for one in some:
                chunk = chunks.get(one.id)
                if chunk is not None and is_new(chunk.text, known) and len(found) < wanted:
                    found.append(Found(chunk, one.score, chunk.text))
        return found

    async def _candidates(self, stored: Stored, query: str, asked: _Asked) -> list[Candidate]:
        """Of one collection, best first. The legs do not know each other; one of them may fail."""
        embedder = self._embedders.get(stored.embed)
        if embedder is None:
            raise CollectionNotReady(stored.name, f"the backend '{stored.embed}', which embeds it, is not configured")
        lost: list[str] = []
        view = await self._view(stored, embedder, asked, lost)
        if view is not None and not view.documents:
            await self._check_ready(stored)
            return []
        within = view.allowed(asked.condition) if asked.condition is not None and view is not None else None
        dense: list[tuple[ChunkId, float]] = []
        vector: NDArray[np.float32] | None = None
        if asked.settings.mode != "lexical" and view is not None and not lost:
            vector = await self._vector(stored, embedder, query, asked, lost)
        if vector is not None and view is not None:
            dense = view.nearest(vector, asked.settings.candidates, within=within)
        lexical = await self._by_words(stored, query, asked, within, lost)
        asked.degraded += lost
        cosines = dict(dense)
        if vector is not None and view is not None:
            cosines |= view.similarity(vector, [id_ for id_, _ in lexical if id_ not in cosines])
        return ranked(dense, lexical, asked.weights, cosines)

    async def _view(self, stored: Stored, embedder: Embedder, asked: _Asked, lost: list[str]) -> View | None:
        """As it is in memory where nobody knows which model embeds now; None: it is not, and words can do without."""
        try:
            return await self.library.view(stored, embedder)
        except BackendError as failure:
            view = self.library.loaded(stored.id)
            if asked.settings.mode == "dense" or (asked.condition is not None and view is None):
                raise
            log.warning("%s: '%s' is searched by words alone: %s", asked.request_id, stored.name, failure)
            lost.append("dense")
            return view

    async def _vector(
        self, stored: Stored, embedder: Embedder, query: str, asked: _Asked, lost: list[str]
    ) -> NDArray[np.float32] | None:
        """Of a question, once for all collections that one backend embeds. None: it fails, and words can do without."""
        key = (stored.embed, query)
        if key not in asked.vectors:
            try:
                asked.vectors[key] = await self._embedded(embedder, query, asked.request_id)
            except EMBEDDER_FAILS as failure:
                if asked.settings.mode == "dense":
                    raise
                log.warning("%s: '%s' is searched by words alone: %s", asked.request_id, stored.name, failure)
                lost.append("dense")
                return None
        return asked.vectors[key]

    async def _by_words(
        self, stored: Stored, query: str, asked: _Asked, within: frozenset[DocumentId] | None, lost: list[str]
    ) -> list[tuple[ChunkId, float]]:
        settings = asked.settings
        if settings.mode == "dense":
            return []
        try:
            return await self.library.lexical.search(stored.id, query, settings.candidates, within=within)
        except DBAPIError as failure:
            if settings.mode == "lexical" or lost:
                raise
            log.warning("%s: '%s' is searched by meaning alone: %s", asked.request_id, stored.name, failure.orig)
            lost.append("lexical")
            return []

    async def _check_ready(self, stored: Stored) -> None:
        """Nothing is found in an empty collection; in one that is still being filled, nobody knows yet."""
        counts, _ = (await self.library.catalog.counts([stored.id]))[stored.id]
        if counts["in_progress"]:
            total = sum(counts.values())
            done = total - counts["in_progress"]
            raise CollectionNotReady(stored.name, f"being indexed, {done} of {total} files")
        if stored.declared and not sum(counts.values()):
            raise CollectionNotReady(stored.name, "it has no file yet that could be read")

    async def _embedded(self, embedder: Embedder, query: str, request_id: str) -> NDArray[np.float32]:
        """Of the question, or of as much of its end as the embedding model reads: there the question usually is."""
        while True:
            try:
                matrix = await embedder.vectors([query], request_id=request_id)
            except UpstreamRefused as exc:
                if exc.code != "context_length_exceeded" or len(query) < 2:
                    raise
                query = query[len(query) // 2 :]
            else:
                vector: NDArray[np.float32] = matrix[0]
                return vector

    async def _reranked(self, query: str, found: list[Found], asked: _Asked) -> list[Found]:
        name = asked.settings.rerank
        assert name
        texts = [f"{one.chunk.heading}\n{one.text}" for one in found]
        try:
            scores = await self._rerankers[name].scores(query, texts, request_id=asked.request_id)
        except EMBEDDER_FAILS as failure:
            log.warning("%s: passages stay as they were found, '%s' failed: %s", asked.request_id, name, failure)
            asked.degraded.append("rerank")
            return found
        order = sorted(range(len(found)), key=lambda place: -scores[place])
        return [found[place]._replace(score=scores[place]) for place in order]

    async def _with_neighbours(self, found: list[Found], reach: int) -> list[Found]:
        """Each hit with the chunks around it; a hit that another one has swallowed is not shown twice."""
        shown: set[ChunkId] = set()
        whole = []
        for one in found:
            if one.chunk.id in shown:
                continue
            first, last = max(0, one.chunk.ordinal - reach), one.chunk.ordinal + reach
            around = await self.library.documents.of_document(one.chunk.document_id, first, last)
            around = [chunk for chunk in around if chunk.id == one.chunk.id or chunk.id not in shown]
            shown |= {chunk.id for chunk in around}
            whole.append(one._replace(text=joined([chunk.text for chunk in around]) or one.text))
        return whole
