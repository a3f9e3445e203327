"""A query and a document as rerankers read them, and what their outputs mean. Loads llama.cpp: only workers import it."""

import math
import re
from typing import Any, Protocol

import numpy as np
from llama_cpp import llama_cpp as lib
from numpy.typing import NDArray


class Tokenise(Protocol):
    def __call__(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class Pairs:
    """
    Args:
        architecture: as the file names it.
    """

    def __init__(self, model: Any, vocab: Any, tokenise: Tokenise, *, architecture: str) -> None:
        template = lib.llama_model_chat_template(model, b"rerank")
        self._template = template.decode("utf-8", "replace") if template else None
        self._vocab = vocab
        self._tokenise = tokenise
        self._gives_probabilities = architecture.startswith("qwen3")

    def tokens(self, query: str, document: str) -> list[int]:
        """By the file's own `rerank` template, else with the usual marks between them. Texts count as text, whatever they look like."""
        if self._template is not None:
            return self._filled(self._template, {"{query}": query, "{document}": document})
        first, second = (self._tokenise(text, add_special=False, parse_special=False) for text in (query, document))
        vocab = self._vocab
        bos, eos, sep = (int(of(vocab)) for of in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_sep))
        begin = [bos] if lib.llama_vocab_get_add_bos(vocab) else []
        end = [sep if eos < 0 else eos] if lib.llama_vocab_get_add_eos(vocab) else []
        between = [sep] if lib.llama_vocab_get_add_sep(vocab) else []
        return [token for token in [*begin, *first, *end, *between, *second, *end] if token >= 0]

    def _filled(self, template: str, texts: dict[str, str]) -> list[int]:
        tokens: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, texts)) + ")", template):
            if part in texts:
                tokens += self._tokenise(texts[part], add_special=False, parse_special=False)
            elif part:
                tokens += self._tokenise(part, add_special=not tokens, parse_special=True)
        return tokens

    def relevance(self, outputs: NDArray[np.float32]) -> float:
        """Between 0 and 1: most models give a logit, Qwen3's a probability."""
        score = float(outputs[0])
        return score if self._gives_probabilities else 1 / (1 + math.exp(-max(-60.0, min(60.0, score))))
