"""The JSON a worker answers with, to OpenAI's letter. Pure: values in, dictionaries out."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.llamacpp.sequences import NO_TIME, Likely, Timings
from backends.llamacpp.speaking import Spoken
from backends.llamacpp.tool_parser import CallPart
from backends.wire import Usage


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_object(timings: Timings) -> dict[str, Any]:
    """As llama-server's `timings`."""
    return {
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": round(timings.prompt_ms, 3),
        "prompt_per_token_ms": _ratio(timings.prompt_ms, timings.prompt_n),
        "prompt_per_second": _ratio(timings.prompt_n * 1e3, timings.prompt_ms),
        "predicted_n": timings.predicted_n,
        "predicted_ms": round(timings.predicted_ms, 3),
        "predicted_per_token_ms": _ratio(timings.predicted_ms, timings.predicted_n),
        "predicted_per_second": _ratio(timings.predicted_n * 1e3, timings.predicted_ms),
    }


def _ratio(one: float, other: float) -> float:
    return round(one / other, 3) if other > 0 else 0.0


@dataclass(slots=True)
class Choice:
    """One answer of several, as it grows."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    likely: list[Likely] = field(default_factory=list)
    finish: str = "stop"
    timings: Timings = NO_TIME

    def add(self, spoken: Spoken) -> None:
        for part in spoken.parts:
            if isinstance(part, str):
                self.text += part
            elif part.name is not None:
                function = {"name": part.name, "arguments": part.arguments}
                self.calls.append({"id": part.id, "type": "function", "function": function})
            else:
                self.calls[part.number]["function"]["arguments"] += part.arguments
        self.likely += spoken.likely
        self.finish = spoken.finish or self.finish
        self.timings = spoken.timings


@dataclass(frozen=True, slots=True)
class Shape:
    """One answer's envelope; chat and legacy completions differ in names only."""

    id: str
    created: int
    model: str
    legacy: bool
    include_usage: bool = False
    logprobs: bool = False

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        return self._envelope("text_completion" if self.legacy else "chat.completion") | {
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_object(usage),
            "timings": timings_object(sum((choice.timings for choice in choices), NO_TIME)),
        }

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice.likely)
        if self.legacy:
            return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish}
        content = None if choice.calls and not choice.text else choice.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if choice.calls:
            message["tool_calls"] = choice.calls
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}

    def role_chunk(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice; legacy completions have none."""
        if self.legacy:
            return None
        return self._chunk(index, {"delta": {"role": "assistant", "content": "", "refusal": None}})

    def chunks(self, index: int, spoken: Spoken) -> list[dict[str, Any]]:
        """Of everything but the end. Tokens without a text that can be shown yet are a chunk, too: they are counted."""
        parts = spoken.parts or (("",) if spoken.likely or (spoken.tokens and not spoken.finish) else ())
        bodies = [self._part(part) for part in parts]
        return [
            self._chunk(index, body, logprobs=self._logprobs(spoken.likely) if place == 0 else None)
            for place, body in enumerate(bodies)
        ]

    def _part(self, part: str | CallPart) -> dict[str, Any]:
        if isinstance(part, str):
            return {"text": part} if self.legacy else {"delta": {"content": part}}
        call: dict[str, Any] = {"index": part.number}
        if part.name is not None:
            call |= {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
        else:
            call |= {"function": {"arguments": part.arguments}}
        return {"delta": {"tool_calls": [call]}}

    def finish_chunk(self, index: int, spoken: Spoken) -> dict[str, Any]:
        chunk = self._chunk(index, {"text": ""} if self.legacy else {"delta": {}}, spoken.finish)
        return chunk | {"timings": timings_object(spoken.timings)}

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return self._stream_envelope() | {"choices": [], "usage": usage_object(usage)}

    def _logprobs(self, likely: Sequence[Likely]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return legacy_logprobs(likely) if self.legacy else {"content": [_token(one) for one in likely], "refusal": None}

    def _chunk(
        self, index: int, part: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **part, "logprobs": logprobs, "finish_reason": finish}
        return self._stream_envelope() | {"choices": [choice]} | ({"usage": None} if self.include_usage else {})

    def _stream_envelope(self) -> dict[str, Any]:
        return self._envelope("text_completion" if self.legacy else "chat.completion.chunk")

    def _envelope(self, object_: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": object_,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "fp_llama_cpp",
        }


def _token(one: Likely) -> dict[str, Any]:
    return _one_token(one.piece, one.logprob) | {"top_logprobs": [_one_token(*other) for other in one.top]}


def _one_token(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}


def legacy_logprobs(likely: Sequence[Likely]) -> dict[str, Any]:
    return {
        "tokens": [one.piece.decode("utf-8", "replace") for one in likely],
        "token_logprobs": [one.logprob for one in likely],
        "top_logprobs": [{piece.decode("utf-8", "replace"): logprob for piece, logprob in one.top} for one in likely],
        "text_offset": [one.offset for one in likely],
    }


def embeddings_object(
    vectors: Sequence[NDArray[np.float32]], *, model: str, base64: bool, tokens: Sequence[int]
) -> dict[str, Any]:
    """`vectors`: float32, one per input, in order; `tokens`: of each input. base64 is little-endian float32, as OpenAI's."""
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": b64encode(vector.astype("<f4").tobytes()).decode() if base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens), "prompt_tokens_by_input": tokens},
    }


def rerank_object(
    scores: Sequence[float], *, model: str, order: Sequence[int], texts: Sequence[str] | None, tokens: int
) -> dict[str, Any]:
    """As Jina and Cohere: the best first.

    Args:
        order: of the documents that are told, by their place in the request.
        texts: of the documents, where the client wants them back.
    """
    results = [
        {"index": place, "relevance_score": scores[place]}
        | ({"document": {"text": texts[place]}} if texts is not None else {})
        for place in order
    ]
    return {
        "model": model,
        "object": "list",
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
