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
from retrieval.catalog import Stored
from retrieval.documents import Chunk
from retrieval.embedding import Embedder
from retrieval.errors import CollectionNotReady, EmbeddingFailed
from retrieval.filters import check
from retrieval.fusion import fuse
from retrieval.library import Library
from retrieval.reranking import Reranker
from retrieval.settings import RetrievalSettings
from retrieval.tables import ChunkId, DocumentId
from retrieval.view import View

log = logging.getLogger("chasqui.collections")

DAMPING = 20
"""Flatter than the source's 60: with two legs, the first ranks should count for more. Measured, as `BALANCE`, with
`tests/retrieval/data/questions.jsonl`: see docs/decisions/0011."""

ALIKE = 0.9
"""Of two passages' words that are the same: from here on the second one says nothing new."""

SPARE = 4
"""Read from the database beyond what is wanted, in case that some repeat each other."""

JOINT_CHARS = 8192
"""How far two chunks in a row may overlap."""

EMBEDDER_FAILS = (BackendError, EmbeddingFailed)


Weights = tuple[float, float]
BALANCE: Weights = (1.5, 1.0)
"""Of looking by meaning and by words."""


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


class _Candidate(NamedTuple):
    id: ChunkId
    fused: float
    cosine: float | None


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
        findings = Findings()
        if condition is not None:
            check(condition)
        queries = [query for query in dict.fromkeys(queries) if query.strip()]
        if not queries:
            return findings
        by_collection = []
        vectors: dict[tuple[str, str], NDArray[np.float32]] = {}
        for stored in collections:
            rankings = [
                await self._candidates(
                    stored, query, settings, condition, vectors, findings.degraded, request_id, weights
                )
                for query in queries
            ]
            by_collection.append(_merged(rankings))
        candidates = by_collection[0] if len(by_collection) == 1 else _across(by_collection)
        findings.degraded = list(dict.fromkeys(findings.degraded))
        if settings.rerank:
            found = await self._gathered(candidates, settings.candidates, least=0.0)
            found = await self._reranked(queries[0], found, settings, findings, request_id)
            found = [one for one in found if one.score >= settings.min_score][: settings.top_k]
        else:
            found = await self._gathered(candidates, settings.top_k, least=settings.min_score)
        findings.found = await self._with_neighbours(found, settings.neighbours) if settings.neighbours else found
        return findings

    async def _gathered(self, candidates: Sequence[_Candidate], wanted: int, *, least: float) -> list[Found]:
        """The best that score enough, that are still there, and that do not say what a better one has said."""
        left = [one for one in candidates if _score(one) >= least]
        found: list[Found] = []
        known: list[frozenset[str]] = []
        while left and len(found) < wanted:
            some, left = left[: wanted + SPARE], left[wanted + SPARE :]
            chunks = await self.library.documents.chunks([one.id for one in some])
            for one in some:
                chunk = chunks.get(one.id)
                if chunk is not None and _is_new(chunk.text, known) and len(found) < wanted:
                    found.append(Found(chunk, _score(one), chunk.text))
        return found

    async def _candidates(
        self,
        stored: Stored,
        query: str,
        settings: RetrievalSettings,
        condition: Any,
        vectors: dict[tuple[str, str], NDArray[np.float32]],
        degraded: list[str],
        request_id: str,
        weights: Weights,
    ) -> list[_Candidate]:
        """Of one collection, best first. The legs do not know each other; one of them may fail."""
        embedder = self._embedders.get(stored.embed)
        if embedder is None:
            raise CollectionNotReady(stored.name, f"the backend '{stored.embed}', which embeds it, is not configured")
        lost: list[str] = []
        view = await self._view(stored, embedder, settings, condition, lost)
        if view is not None and not view.documents:
            await self._check_ready(stored)
            return []
        within = view.allowed(condition) if condition is not None and view is not None else None
        dense: list[tuple[ChunkId, float]] = []
        vector: NDArray[np.float32] | None = None
        if settings.mode != "lexical" and view is not None and not lost:
            try:
                key = (stored.embed, query)
                vector = vectors[key] = (
                    vectors[key] if key in vectors else await self._vector(embedder, query, request_id)
                )
                dense = view.nearest(vector, settings.candidates, within=within)
            except EMBEDDER_FAILS as failure:
                if settings.mode == "dense":
                    raise
                log.warning("%s: '%s' is searched by words alone: %s", request_id, stored.name, failure)
                lost.append("dense")
        lexical = await self._by_words(stored, query, settings, within, lost, request_id)
        degraded += lost
        return _fused(view, vector, dense, lexical, weights)

    async def _view(
        self, stored: Stored, embedder: Embedder, settings: RetrievalSettings, condition: Any, lost: list[str]
    ) -> View | None:
        """As it is in memory where nobody knows which model embeds now; None: it is not, and words can do without."""
        try:
            return await self.library.view(stored, embedder)
        except BackendError as failure:
            view = self.library.loaded(stored.id)
            if settings.mode == "dense" or (condition is not None and view is None):
                raise
            log.warning("'%s' is searched by words alone: %s", stored.name, failure)
            lost.append("dense")
            return view

    async def _by_words(
        self,
        stored: Stored,
        query: str,
        settings: RetrievalSettings,
        within: frozenset[DocumentId] | None,
        degraded: list[str],
        request_id: str,
    ) -> list[tuple[ChunkId, float]]:
        if settings.mode == "dense":
            return []
        try:
            return await self.library.lexical.search(stored.id, query, settings.candidates, within=within)
        except DBAPIError as failure:
            if settings.mode == "lexical" or "dense" in degraded:
                raise
            log.warning("%s: '%s' is searched by meaning alone: %s", request_id, stored.name, failure.orig)
            degraded.append("lexical")
            return []

    async def _check_ready(self, stored: Stored) -> None:
        """Nothing is found in an empty collection; in one that is still being filled, nobody knows yet."""
        counts, _ = (await self.library.catalog.counts([stored.id]))[stored.id]
        if counts["in_progress"]:
            total = sum(counts.values())
            done = total - counts["in_progress"]
            raise CollectionNotReady(stored.name, f"being indexed, {done} of {total} files")
        if stored.declared and not total_of(counts):
            raise CollectionNotReady(stored.name, "it has no file yet that could be read")

    async def _vector(self, embedder: Embedder, query: str, request_id: str) -> NDArray[np.float32]:
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

    async def _reranked(
        self, query: str, found: list[Found], settings: RetrievalSettings, findings: Findings, request_id: str
    ) -> list[Found]:
        assert settings.rerank
        try:
            scores = await self._rerankers[settings.rerank].scores(
                query, [f"{one.chunk.heading}\n{one.text}" for one in found], request_id=request_id
            )
        except EMBEDDER_FAILS as failure:
            log.warning("%s: passages stay as they were found, '%s' failed: %s", request_id, settings.rerank, failure)
            findings.degraded.append("rerank")
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


def total_of(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _fused(
    view: View | None,
    vector: NDArray[np.float32] | None,
    dense: Sequence[tuple[ChunkId, float]],
    lexical: Sequence[tuple[ChunkId, float]],
    weights: Weights,
) -> list[_Candidate]:
    legs = [[id_ for id_, _ in leg] for leg in (dense, lexical)]
    order = fuse(legs, damping=DAMPING, weights=weights)
    cosines = dict(dense)
    unknown = [id_ for id_, _ in order if id_ not in cosines]
    if vector is not None and view is not None and unknown:
        cosines |= view.similarity(vector.astype(np.float32), unknown)
    most = sum(weight for weight, leg in zip(weights, legs, strict=True) if leg) / (DAMPING + 1) or 1.0
    return [_Candidate(id_, score / most, cosines.get(id_)) for id_, score in order]


def _merged(rankings: Sequence[Sequence[_Candidate]]) -> list[_Candidate]:
    """Of several queries over one collection."""
    if len(rankings) == 1:
        return list(rankings[0])
    known: dict[ChunkId, _Candidate] = {}
    for candidate in (one for ranking in rankings for one in ranking):
        before = known.get(candidate.id)
        if before is None or (candidate.cosine or 0.0, candidate.fused) > (before.cosine or 0.0, before.fused):
            known[candidate.id] = candidate
    order = fuse([[one.id for one in ranking] for ranking in rankings], damping=DAMPING)
    return [known[id_] for id_, _ in order]


def _across(by_collection: Sequence[Sequence[_Candidate]]) -> list[_Candidate]:
    """Each ranking is fused in itself; only the cosine compares across collections."""
    everything = [one for candidates in by_collection for one in candidates]
    return sorted(everything, key=lambda one: -(one.cosine if one.cosine is not None else one.fused))


def _score(candidate: _Candidate) -> float:
    score = candidate.cosine if candidate.cosine is not None else candidate.fused
    return min(1.0, max(0.0, score))


def _is_new(text: str, known: list[frozenset[str]]) -> bool:
    """Whether none of the known texts says the same; it is known then."""
    words = frozenset(text.lower().split())
    if any(_alike(words, other) for other in known):
        return False
    known.append(words)
    return True


def _alike(some: frozenset[str], others: frozenset[str]) -> bool:
    smaller, larger = sorted((len(some), len(others)))
    if smaller < ALIKE * larger:
        return False
    return len(some & others) >= ALIKE * len(some | others)


def joined(texts: Sequence[str]) -> str:
    """Texts in a row, of which one may begin with what the one before it ends with."""
    whole = texts[0] if texts else ""
    for text in texts[1:]:
        overlap = next(
            (n for n in range(min(len(whole), len(text), JOINT_CHARS), 15, -1) if whole.endswith(text[:n])), 0
        )
        whole += text[overlap:] if overlap else f"\n\n{text}"
    return whole
