"""Embeddings and rerank of a worker."""

from typing import Any

import msgspec
import numpy as np

from backends.asgi import Send, send_json
from backends.errors import InvalidRequest
from backends.llamacpp.answers import embeddings_object, rerank_object
from backends.llamacpp.aside import aside
from backends.llamacpp.embedding_queue import EmbeddingQueue
from backends.llamacpp.prompts import Inputs
from backends.wire import Body

MAX_DOCUMENTS = 10_000

Headers = dict[bytes, bytes]


class Document(msgspec.Struct):
    text: str


class Measuring:
    def __init__(self, queue: EmbeddingQueue, *, name: str) -> None:
        self._queue = queue
        self._engine = queue.engine
        self._name = name
        self._inputs = Inputs(queue.engine)

    async def embeddings(self, body: Body, send: Send, _: Headers) -> None:
        encoding = body.read("encoding_format", str, "float")
        if encoding not in ("float", "base64"):
            raise InvalidRequest("'encoding_format' is float or base64.", param="encoding_format")
        own = self._engine.info.dimensions
        dimensions = body.read("dimensions", int, own)
        if dimensions != own:
            words = f"this model gives vectors of {own} dimensions and cannot shorten them to {dimensions}."
            raise InvalidRequest(words, param="dimensions")
        inputs = await aside(len(body.raw), lambda: self._inputs.texts(body))
        vectors = await self._queue.embed(inputs)
        model = body.read("model", str, self._name)
        answer = embeddings_object(
            vectors, model=model, base64=encoding == "base64", tokens=[len(item) for item in inputs]
        )
        await send_json(send, 200, answer)

    async def rerank(self, body: Body, send: Send, _: Headers) -> None:
        query, documents = body.require("query", str), read_documents(body)
        top = body.read("top_n", int, len(documents))
        if top < 1:
            raise InvalidRequest("'top_n' is a whole number from 1 on.", param="top_n")
        pairs = await aside(len(body.raw), lambda: self._inputs.pairs(query, documents))
        scores = [self._engine.pairs.relevance(vector) for vector in await self._queue.embed(pairs)]
        order = [int(place) for place in np.argsort([-score for score in scores], kind="stable")[:top]]
        answer = rerank_object(
            scores,
            model=body.read("model", str, self._name),
            order=order,
            texts=documents if body.read("return_documents", bool, False) else None,
            tokens=sum(map(len, pairs)),
        )
        await send_json(send, 200, answer)

    async def count(self, body: Body, send: Send, _: Headers) -> None:
        """Tokens of everything that would be read."""
        if "documents" in body:
            query, documents = body.require("query", str), read_documents(body)
            items = await aside(len(body.raw), lambda: self._inputs.pairs(query, documents))
        else:
            items = await aside(len(body.raw), lambda: self._inputs.texts(body))
        size: dict[str, Any] = {
            "prompt_tokens": sum(map(len, items)),
            "context_tokens": self._engine.info.context_tokens,
        }
        await send_json(send, 200, size)


def read_documents(body: Body) -> list[str]:
    """
    Raises:
        InvalidRequest
    """
    documents = body.require("documents", list[str | Document])
    if not 1 <= len(documents) <= MAX_DOCUMENTS:
        raise InvalidRequest(f"'documents' holds 1 to {MAX_DOCUMENTS} texts.", param="documents")
    return [one if isinstance(one, str) else one.text for one in documents]
