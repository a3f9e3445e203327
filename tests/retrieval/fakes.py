"""A backend that makes vectors of words: equal texts have equal vectors, and texts with shared words are near."""

import base64
import hashlib
from collections.abc import AsyncGenerator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from backends.base import Answer, Call, Event, PromptSize
from backends.errors import BackendError


def words_of(text: str) -> list[str]:
    return [word.strip(".,:;!?#*").lower() for word in text.split()]


def vector_of(text: str, dimensions: int, seed: str) -> NDArray[np.float32]:
    """float32 [dimensions], unit length; each text by itself, so the same bits whatever it is asked with."""
    total = np.zeros(dimensions)
    for word in words_of(text) or [""]:
        digest = hashlib.sha256(f"{seed}/{word}".encode()).digest()
        total += np.random.default_rng(int.from_bytes(digest[:8], "little")).standard_normal(dimensions)
    return (total / np.linalg.norm(total)).astype(np.float32)


class WordsBackend:
    """
    Args:
        local: False: answers as a provider does, floats and one sum of tokens.
        seed: another one is another model.
        forgets: texts with this word get no embedding.
        failures: raised in turn by the first calls.
    """

    quotes = False

    def __init__(
        self,
        *,
        local: bool = True,
        seed: str = "one",
        dimensions: int = 64,
        forgets: str | None = None,
        counts: bool = True,
        failures: Sequence[BackendError] = (),
    ) -> None:
        self.name = "words"
        self.local = local
        self.seed = seed
        self.dimensions = dimensions
        self.forgets = forgets
        self.counts = counts
        self.failures = list(failures)
        self.calls: list[Call] = []

    @property
    def asked(self) -> list[str]:
        """All texts so far, in order."""
        return [text for call in self.calls for text in call.body.require("input", list[str])]

    async def complete(self, call: Call) -> Answer:
        self.calls.append(call)
        if self.failures:
            raise self.failures.pop(0)
        texts = call.body.require("input", list[str])
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(call, text)}
            for index, text in enumerate(texts)
            if self.forgets is None or self.forgets not in text
        ]
        return Answer(msgspec.json.encode({"data": data[::-1], "usage": self._usage(texts)}), None, {})

    def _written(self, call: Call, text: str) -> str | list[float]:
        vector = vector_of(text, self.dimensions, self.seed)
        if call.body.read("encoding_format", str) == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return [float(value) for value in vector]

    def _usage(self, texts: Sequence[str]) -> dict[str, object]:
        tokens = [tokens_of(text) for text in texts]
        return {"prompt_tokens": sum(tokens)} | ({"prompt_tokens_by_input": tokens} if self.local else {})

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        raise NotImplementedError
        yield Event(b"")

    async def count(self, call: Call) -> PromptSize | None:
        return None

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return [1 + len(text) // 4 for text in texts] if self.counts else None

    async def identity(self) -> str:
        return f"{self.seed}/{self.dimensions}"

    def status(self) -> str:
        return "ready"

    async def aclose(self) -> None:
        return None


def tokens_of(text: str) -> int:
    return 2 + len(text.split())
