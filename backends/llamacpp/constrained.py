"""Answers that have to keep to a grammar: which tokens may come next, by llguidance. One `Constraint` per sequence.

llama.cpp's own grammars end the process when a token does not fit, and take a JSON schema only in part (decision 0009). What llguidance
cannot do it says in words, and its work per token is bounded.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.errors import InvalidRequest


class Constraint:
    """
    Args:
        matcher: an `LLMatcher`, which nobody else uses.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._allowed = np.zeros((vocabulary + 31) // 32, np.int32)

    def narrow(self, logits: NDArray[np.float32]) -> None:
        """Rule out, in place, what cannot come next.

        Raises:
            InvalidRequest: the grammar is too complex here, or this vocabulary cannot say what it asks for.
        """
        self._matcher.unsafe_compute_mask_ptr(self._allowed.ctypes.data, self._allowed.nbytes)
        self._check()
        allowed = np.unpackbits(self._allowed.view(np.uint8), bitorder="little", count=len(logits)).view(np.bool_)
        logits[~allowed] = -np.inf
        if not allowed.any() or float(logits.max()) == -np.inf:
            raise InvalidRequest("what the answer has to be cannot be said in this model's tokens.", param="grammar")

    def take(self, token: int) -> bool:
        """`token` has been chosen. True: the answer is complete, nothing may follow.

        Raises:
            InvalidRequest: as `narrow`.
        """
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            words = str(self._matcher.get_error()).splitlines()[0][:200]
            raise InvalidRequest(f"the schema or grammar cannot be followed any further: {words}", param="grammar")


def new_matcher(tokenizer: Any, grammar: str) -> Any:
    """
    Raises:
        InvalidRequest: it cannot be followed with this vocabulary.
    """
    from llguidance import LLMatcher  # here, so that workers that never need it start faster

    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        words = " ".join(str(matcher.get_error()).split())[:400]
        raise InvalidRequest(f"the schema or grammar cannot be followed: {words}", param="grammar")
    return matcher
