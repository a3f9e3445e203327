"""Sampling parameters and the chain of samplers they stand for. The chain is llama.cpp's; only workers build one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Sampling:
    """OpenAI's defaults; where OpenAI has no such parameter, the value that switches it off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    """32 bits. Reproduces an answer only where the logits are the same."""
    ignore_eos: bool = False
    """The model's end of turn is never chosen."""


TOP_K_UNDER_TOP_P = 200
"""top_p over a whole vocabulary sorts it at every token (9.5 ms against 0.2 ms at 152k tokens); the tail behind rank 200 is noise."""

PENALTY_WINDOW_TOKENS = 256

COLD = 1e-6
"""Below it, only the likeliest token has a chance that a float can hold; smaller ones divide to infinity."""


def build_chain(sampling: Sampling, vocabulary: int, ends: Sequence[int] = ()) -> Any:
    """A chain to be freed by the caller; its members belong to it.

    Args:
        ends: tokens that end a turn.

    Raises:
        MemoryError: llama.cpp gave NULL for one of its samplers.
    """
    from llama_cpp import llama_cpp as lib  # here, so that reading parameters needs no engine

    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in (*_logit_changes(sampling, vocabulary, ends, lib), *_choice(sampling, lib)):
        if not sampler:  # NULL is a falsy object here, not None
            lib.llama_sampler_free(chain)
            raise MemoryError("llama.cpp could not make a sampler")
        lib.llama_sampler_chain_add(chain, sampler)
    return chain


def _logit_changes(sampling: Sampling, vocabulary: int, ends: Sequence[int], lib: Any) -> Iterator[Any]:
    wanted = sampling.logit_bias | (dict.fromkeys(ends, -math.inf) if sampling.ignore_eos else {})
    if wanted:
        biases = (lib.llama_logit_bias * len(wanted))()
        for entry, (token, bias) in zip(biases, wanted.items(), strict=True):
            entry.token, entry.bias = token, bias
        yield lib.llama_sampler_init_logit_bias(vocabulary, len(biases), biases)
    if sampling.repeat_penalty != 1.0 or sampling.frequency_penalty or sampling.presence_penalty:
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        yield lib.llama_sampler_init_penalties(vocabulary, PENALTY_WINDOW_TOKENS, *penalties)


def _choice(sampling: Sampling, lib: Any) -> Iterator[Any]:
    if sampling.temperature < COLD:
        yield lib.llama_sampler_init_greedy()
        return
    if sampling.top_k > 0 or sampling.top_p < 1:
        yield lib.llama_sampler_init_top_k(sampling.top_k or TOP_K_UNDER_TOP_P)
    if sampling.top_p < 1:
        yield lib.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield lib.llama_sampler_init_min_p(sampling.min_p, 1)
    yield lib.llama_sampler_init_temp(sampling.temperature)
    yield lib.llama_sampler_init_dist(sampling.seed)
