"""Passages put in order by a model that reads the question beside each of them."""

import math
from collections.abc import Sequence

import msgspec

from backends.base import RERANK, Answer, Backend, Call
from backends.errors import UpstreamRefused
from backends.wire import Body
from retrieval.errors import EmbeddingFailed

LEAST_CHARS = 64
"""Of a text; a model that reads less of it cannot judge it."""


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Ranking(msgspec.Struct):
    results: list[_Result]


class Reranker:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def scores(self, query: str, texts: Sequence[str], *, request_id: str) -> list[float]:
        """Of each text in order, in [0, 1].

        Raises:
            BackendError, EmbeddingFailed
        """
        if not texts:
            return []
        name = self._backend.name
        answer = await self._asked(query, texts, request_id)
        try:
            results = msgspec.json.decode(answer.body, type=_Ranking).results
        except msgspec.MsgspecError as exc:
            raise EmbeddingFailed(f"backend '{name}' gave no readable ranking: {exc}") from None
        by_place = {one.index: one.relevance_score for one in results}
        if by_place.keys() != set(range(len(texts))) or not all(map(math.isfinite, by_place.values())):
            raise EmbeddingFailed(f"backend '{name}' did not rank every passage")
        return _in_unit([by_place[place] for place in range(len(texts))])

    async def _asked(self, query: str, texts: Sequence[str], request_id: str) -> Answer:
        """With as much of each text as the model reads beside the question: a beginning says more than nothing."""
        name, longest = self._backend.name, max(map(len, texts))
        while True:
            documents = [text[:longest] for text in texts]
            body = Body(b"{}").replace(model=name, query=query, documents=documents, top_n=len(texts))
            try:
                return await self._backend.complete(Call(RERANK, body, request_id, name))
            except UpstreamRefused as exc:
                if exc.code != "context_length_exceeded" or longest < LEAST_CHARS:
                    raise
                longest //= 2


def _in_unit(scores: Sequence[float]) -> list[float]:
    """Our own workers and most providers give probabilities; llama-server gives logits."""
    if all(0.0 <= score <= 1.0 for score in scores):
        return list(scores)
    return [1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, score)))) for score in scores]
