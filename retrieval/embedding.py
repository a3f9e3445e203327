"""Texts -> vectors through a backend, with the cache in front of it."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.base import EMBEDDINGS, Backend, Call
from backends.wire import MAX_TOKENS, Body
from retrieval.embedding_cache import EmbeddingCache
from retrieval.errors import EmbeddingFailed
from retrieval.vector_memory import CachedVector
from retrieval.vector_store import Entry, Text

Vector = NDArray[np.float32]

TEXTS_PER_CALL = 64
WORDS_PER_CALL = 5000
SPECIAL = 16
"""Tokens around a text, and what a sum over words may miss."""

UNKNOWN_WINDOW = 4096
"""Less than all providers' models read today."""

TRIES = 3
"""For a model that is swapped again and again."""


class Embedded(NamedTuple):
    vectors: list[Vector]
    """One per input, in order, float32 [dim]."""
    prompt_tokens: int
    """Of all inputs."""
    cached_tokens: int
    """Of those that came from the cache."""
    hits: int
    tokens: list[int]
    """Of each input."""
    space: bytes
    """Vectors of one space can be compared."""


class Use(NamedTuple):
    """How a request uses the cache."""

    scope: str
    """Who shares it: texts of one scope are never found from another."""
    read: bool = True
    write: bool = True
    owner: str | None = None
    """Who may search the texts; None: they are not kept."""
    progress: Callable[[int], None] | None = None
    """Told how many of the texts are done, as they are."""


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_by_input: list[int] | None = None
    """Our workers say it for each input; a provider gives the sum only."""


class _Reply(msgspec.Struct):
    data: list[_Item]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class Embedder:
    """
    Args:
        cache: None: everything is computed.
    """

    def __init__(self, backend: Backend, cache: EmbeddingCache | None = None) -> None:
        self.backend = backend
        self._cache = cache
        self._underway: dict[bytes, asyncio.Future[None]] = {}
        """What requests are computing at this moment, and when that has ended."""

    async def embed(self, texts: Sequence[str], call: Call, use: Use) -> Embedded:
        """Vectors of `texts`: what the cache has comes from there, the rest is computed, each distinct text once, also when several
        requests want it at the same time. All of them by one model: if it is swapped meanwhile, it is begun anew.

        Args:
            call: as it goes to the backend, but for the input; all fields of its body but the encoding and the
                user are part of the key.

        Raises:
            BackendError, EmbeddingFailed
        """
        call = replace(call, body=call.body.without("input", "encoding_format", "user"))
        for _ in range(TRIES):
            identity = await self.backend.identity()
            embedded = await self._embed(texts, call, use, identity)
            if await self.backend.identity() == identity:
                return embedded
        raise EmbeddingFailed(f"the model of backend '{self.backend.name}' changed while it was at work; ask again")

    async def _embed(self, texts: Sequence[str], call: Call, use: Use, identity: str) -> Embedded:
        space = self._space(call.body, identity)
        keys = _keys(texts, space, use.scope)
        cache = self._cache
        known = await cache.get(keys, self.backend.name) if cache is not None and use.read else {}
        text_of = dict(zip(keys, texts, strict=True))
        missing = {key: text_of[key] for key in keys if key not in known}
        fresh = await self._computed_once(missing, call, use, identity)
        if cache is not None and use.write and use.owner is not None:
            owner, name = use.owner, self.backend.name
            cache.keep(Text(owner, key, name, space, text) for key, text in text_of.items())
        found = {**known, **fresh}
        return Embedded(
            vectors=[found[key].vector for key in keys],
            prompt_tokens=sum(found[key].tokens for key in keys),
            cached_tokens=sum(known[key].tokens for key in keys if key in known),
            hits=sum(key in known for key in keys),
            tokens=[found[key].tokens for key in keys],
            space=space,
        )

    async def _computed_once(
        self, missing: Mapping[bytes, str], call: Call, use: Use, identity: str
    ) -> dict[bytes, CachedVector]:
        """Those that another request is computing are waited for; if that one fails or leaves, they are computed here."""
        made: dict[bytes, CachedVector] = {}
        while left := [key for key in missing if key not in made]:
            if self._cache is None or not use.read:
                return await self._lead(left, missing, call, use, identity)
            late = {key: value for key in left if (value := self._cache.recall(key)) is not None}
            made |= late  # somebody was faster while the store was read
            own = [key for key in left if key not in late and key not in self._underway]
            if own:
                made |= await self._lead(own, missing, call, use, identity)
            others = [self._underway[key] for key in left if key not in made and key in self._underway]
            await asyncio.gather(*map(asyncio.shield, others))
        return made

    async def _lead(
        self, keys: Sequence[bytes], texts: Mapping[bytes, str], call: Call, use: Use, identity: str
    ) -> dict[bytes, CachedVector]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if use.read:
            self._underway |= dict.fromkeys(keys, ended)
        try:
            progress = _counted(use.progress, known=len(texts) - len(keys))
            computed = await self._compute([texts[key] for key in keys], call, progress)
            made = dict(zip(keys, computed, strict=True))
            unchanged = (
                await self.backend.identity() == identity
            )  # a model that was swapped meanwhile made other vectors
            if self._cache is not None and use.write and unchanged:
                self._cache.put(Entry(key, self.backend.name, value) for key, value in made.items())
            return made
        finally:
            ended.set_result(None)
            for key in keys if use.read else ():
                del self._underway[key]

    async def vectors(self, texts: Sequence[str], *, request_id: str) -> NDArray[np.float32]:
        """For documents: float32 [len(texts), dim], unit length, past the cache (the database keeps them already)."""
        body = Body(b"{}").replace(model=self.backend.name)
        made = await self._compute(texts, Call(EMBEDDINGS, body, request_id, self.backend.name))
        matrix = np.stack([one.vector for one in made])
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        return (matrix / np.where(lengths > 0, lengths, 1)).astype(np.float32)

    async def window_tokens(self) -> int:
        """What the model reads of one text, with a little left for special tokens; a guess where it cannot say."""
        call = Call(EMBEDDINGS, Body(b"{}").replace(model=self.backend.name, input=["a"]), "window", self.backend.name)
        size = await self.backend.count(call)
        return max(32, size.context_tokens - SPECIAL) if size is not None else UNKNOWN_WINDOW

    async def word_counts(self, words: Iterable[str]) -> dict[str, int]:
        """Tokens of each distinct word as the model counts, special tokens aside; a guess on the safe side where it cannot."""
        distinct = list(dict.fromkeys(words))
        counts: dict[str, int] = {}
        for start in range(0, len(distinct), WORDS_PER_CALL):
            part = distinct[start : start + WORDS_PER_CALL]
            known = await self.backend.count_texts(part)
            counts |= zip(part, known or [1 + len(word) // 3 for word in part], strict=True)
        return counts

    def _space(self, body: Body, identity: str) -> bytes:
        """Everything that changes a vector but the text: who shares a space can compare vectors."""
        # A local model is its file, whatever a client calls it; an upstream's name for it is part of what it is.
        own = (body.without("model") if self.backend.local else body).raw
        return hashlib.sha256(identity.encode() + b"\0" + own).digest()

    async def _compute(
        self, texts: Sequence[str], call: Call, progress: Callable[[int], None] = lambda done: None
    ) -> list[CachedVector]:
        made: list[CachedVector] = []
        for start in range(0, len(texts), TEXTS_PER_CALL):
            made += await self._ask(texts[start : start + TEXTS_PER_CALL], call)
            progress(len(made))
        return made

    async def _ask(self, texts: Sequence[str], call: Call) -> list[CachedVector]:
        encoding = "base64" if self.backend.local else "float"
        name = self.backend.name
        body = call.body.replace(input=texts, encoding_format=encoding)
        answer = await self.backend.complete(replace(call, body=body))
        try:
            reply = msgspec.json.decode(answer.body, type=_Reply)
            items = sorted(reply.data, key=lambda item: item.index)
            vectors = [_vector(item.embedding) for item in items]
        except (msgspec.MsgspecError, binascii.Error, ValueError) as exc:
            raise EmbeddingFailed(f"backend '{name}' gave no readable embeddings: {exc}") from None
        if [item.index for item in items] != list(range(len(texts))):
            raise EmbeddingFailed(f"backend '{name}' gave {len(vectors)} embeddings for {len(texts)} texts")
        if not all(np.isfinite(vector).all() for vector in vectors):
            raise EmbeddingFailed(f"backend '{name}' gave a vector that is not finite")
        tokens = reply.usage.prompt_tokens_by_input or _shares(reply.usage.prompt_tokens, texts)
        if not all(0 <= count <= MAX_TOKENS for count in tokens):
            raise EmbeddingFailed(f"backend '{name}' counted an impossible number of tokens")
        if len(tokens) != len(texts):
            raise EmbeddingFailed(f"backend '{name}' counted {len(tokens)} texts of {len(texts)}")
        return [CachedVector(vector, count) for vector, count in zip(vectors, tokens, strict=True)]


def _keys(texts: Sequence[str], space: bytes, scope: str) -> list[bytes]:
    """Of exact texts in a space, for those who share."""
    prefix = hashlib.sha256(space + scope.encode() + b"\0")
    keys = []
    for text in texts:
        key = prefix.copy()
        key.update(text.encode("utf-8", "surrogatepass"))
        keys.append(key.digest())
    return keys


def _counted(progress: Callable[[int], None] | None, *, known: int) -> Callable[[int], None]:
    """For what was known before and what is computed now together."""
    return (lambda done: progress(known + done)) if progress is not None else lambda done: None


def _vector(value: list[float] | str) -> Vector:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
    return np.asarray(value, np.float32)


def _shares(tokens: int, texts: Sequence[str]) -> list[int]:
    """A sum spread over the texts by length; whole numbers that add up to it."""
    total = sum(map(len, texts)) or 1
    shares, given, seen = [], 0, 0
    for text in texts:
        seen += len(text)
        upto = tokens * seen // total
        shares.append(upto - given)
        given = upto
    return shares


def render(embedded: Embedded, *, model: str, encoding: str) -> dict[str, Any]:
    """OpenAI's answer. `encoding`: float, or base64 of little-endian float32."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if encoding == "base64"
            else vector.tolist(),
        }
        for index, vector in enumerate(embedded.vectors)
    ]
    usage: dict[str, Any] = {"prompt_tokens": embedded.prompt_tokens, "total_tokens": embedded.prompt_tokens}
    if embedded.cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": embedded.cached_tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}
