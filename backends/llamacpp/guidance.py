"""A model's vocabulary as llguidance wants it. Loads llama.cpp: only workers import it."""

import ctypes
from collections.abc import Sequence
from typing import Any

from llama_cpp import llama_cpp as lib

from backends.errors import InvalidRequest

CONTROL, USER_DEFINED = int(lib.LLAMA_TOKEN_ATTR_CONTROL), int(lib.LLAMA_TOKEN_ATTR_USER_DEFINED)


def special_attributes(vocab: Any, token: int) -> int:
    """The attributes that make a token more than its text."""
    return int(lib.llama_vocab_get_attr(vocab, token)) & (CONTROL | USER_DEFINED)


def tokenizer_of(vocab: Any, ends: Sequence[int]) -> Any:
    """The bytes of each token, those with a meaning of their own marked by a byte that no text has.

    Raises:
        InvalidRequest: llguidance cannot work with such a vocabulary.
    """
    from llguidance import LLTokenizer  # here, so that workers that never need it start faster

    if not ends:
        raise InvalidRequest("this model has no token that ends an answer, so its answers cannot be kept to a grammar.")
    buffer = ctypes.create_string_buffer(4096)
    tokens = []
    for token in range(int(lib.llama_vocab_n_tokens(vocab))):
        length = lib.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
        text = buffer.raw[: max(0, length)]
        special = special_attributes(vocab, token)
        marked = special & CONTROL or (special and text.startswith(b"<") and text.endswith(b">"))
        tokens.append(b"\xff" + text if marked else text)
    tokenise = ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value
    try:
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]  # missing in its stub
            tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenise, eos_token=list(ends)
        )
    except ValueError as exc:
        raise InvalidRequest(f"answers of this model cannot be kept to a grammar: {exc}") from None
