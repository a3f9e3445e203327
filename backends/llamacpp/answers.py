"""The JSON a worker answers with, to OpenAI's letter. Pure: values in, dictionaries out."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.wire import Usage


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


@dataclass(frozen=True, slots=True)
class Shape:
    """One answer's envelope; chat and legacy completions differ in names only."""

    id: str
    created: int
    model: str
    legacy: bool
    include_usage: bool = False

    def whole(self, choices: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """`choices`: (text, finish_reason) in order of index."""
        return self._envelope("text_completion" if self.legacy else "chat.completion") | {
            "choices": [self._choice(index, text, finish) for index, (text, finish) in enumerate(choices)],
            "usage": usage_object(usage),
        }

    def _choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        if self.legacy:
            return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def role_chunk(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice; legacy completions have none."""
        if self.legacy:
            return None
        return self._chunk(index, {"delta": {"role": "assistant", "content": "", "refusal": None}})

    def text_chunk(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk(index, {"text": text} if self.legacy else {"delta": {"content": text}})

    def finish_chunk(self, index: int, finish: str) -> dict[str, Any]:
        return self._chunk(index, {"text": ""} if self.legacy else {"delta": {}}, finish)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return self._stream_envelope() | {"choices": [], "usage": usage_object(usage)}

    def _chunk(self, index: int, part: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, **part, "logprobs": None, "finish_reason": finish}
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
