"""The story of a similarity request: strings, compared by the vectors that a model makes of them."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.errors import InvalidRequest
from backends.wire import Body
from gateway.attribution import attribute
from gateway.bookkeeping import Bookkeeping
from gateway.embeddings import MAX_INPUTS, Embeddings
from gateway.exchange import Exchange
from gateway.outlet import Outlet
from retrieval.text_search import unit

Metric = Literal["cosine", "dot", "euclidean"]
METRICS: dict[str, Metric] = {"cosine": "cosine", "dot": "dot", "euclidean": "euclidean"}
Matrix = NDArray[np.float32]


class Similarity:
    def __init__(
        self, embeddings: Embeddings, books: Bookkeeping, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._embeddings = embeddings
        self._books = books
        self._clock = clock

    async def answer(self, exchange: Exchange, body: Body, outlet: Outlet) -> None:
        """
        Raises:
            PolicyError, BackendError, RetrievalError, GatewayError
        """
        exchange.model = body.require("model", str)
        attribute(exchange, body)
        metric = read_metric(body)
        inputs, pairs = read_texts(body)
        with self._books.of(exchange, outlet, body.raw):
            texts = list(dict.fromkeys(inputs if inputs is not None else [text for pair in pairs for text in pair]))
            asked = body.without("input", "pairs", "metric")
            embedded = await self._embeddings.made(exchange, asked, texts)
            place = {text: number for number, text in enumerate(texts)}
            vectors = np.stack(embedded.vectors)
            if inputs is not None:
                rows = vectors[[place[text] for text in inputs]]
                result: Any = await asyncio.to_thread(lambda: matrix(rows, metric).tolist())
            else:
                left, right = (vectors[[place[pair[side]] for pair in pairs]] for side in (0, 1))
                result = between(left, right, metric).tolist()
            usage = {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens}
            told = {
                "object": "similarity",
                "model": exchange.model,
                "metric": metric,
                "similarities": result,
                "usage": usage,
            }
            exchange.outcome = "complete"
            self._books.close(exchange)
            self._books.first_byte(exchange, self._clock())
            await outlet.whole(msgspec.json.encode(told), {"content-type": "application/json"})


def read_metric(body: Body) -> Metric:
    """
    Raises:
        InvalidRequest
    """
    metric = body.read("metric", str, "cosine")
    if metric not in METRICS:
        raise InvalidRequest("'metric' is cosine, dot or euclidean.", param="metric")
    return METRICS[metric]


def read_texts(body: Body) -> tuple[list[str] | None, list[tuple[str, str]]]:
    """`input`, or `pairs`.

    Raises:
        InvalidRequest
    """
    if ("input" in body) == ("pairs" in body):
        raise InvalidRequest("give either 'input', a list of strings, or 'pairs', a list of pairs.", param="input")
    if "input" in body:
        inputs = body.require("input", list[str])
        check(inputs, "input")
        return inputs, []
    pairs = body.require("pairs", list[tuple[str, str]])
    check([text for pair in pairs for text in pair], "pairs")
    return None, pairs


def check(texts: list[str], param: str) -> None:
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise InvalidRequest(f"'{param}' holds {len(texts)} strings; 1 to {MAX_INPUTS} are allowed.", param=param)
    if not all(texts):
        raise InvalidRequest(f"'{param}' must not hold an empty string.", param=param)


def matrix(vectors: Matrix, metric: Metric) -> Matrix:
    """float32 [n, dimensions] -> [n, n]; similarity for cosine and dot, distance for euclidean."""
    if metric == "euclidean":
        squares = np.einsum("ij,ij->i", vectors, vectors)
        distances = squares[:, None] + squares[None, :] - 2 * (vectors @ vectors.T)
        np.fill_diagonal(distances, 0)
        return np.asarray(np.sqrt(np.maximum(distances, 0)), np.float32)
    if metric == "cosine":
        vectors = unit(vectors)
    return np.asarray(vectors @ vectors.T, np.float32)


def between(left: Matrix, right: Matrix, metric: Metric) -> Matrix:
    """Row by row: float32 [n, dimensions], twice -> [n]."""
    if metric == "euclidean":
        return np.asarray(np.linalg.norm(left - right, axis=1), np.float32)
    if metric == "cosine":
        left, right = unit(left), unit(right)
    return np.asarray(np.einsum("ij,ij->i", left, right), np.float32)
