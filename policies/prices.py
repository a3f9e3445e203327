"""What a request costs, in billionths of a dollar: whole numbers, so that sums stay exact."""

import math

from backends.wire import Usage
from policies.settings import PriceSettings

NANO = 1_000_000_000
PER_MILLION = NANO // 1_000_000
"""Billionths of a dollar for one token at a price of one dollar for a million."""


class Price:
    def __init__(self, settings: PriceSettings) -> None:
        self._input = settings.input_per_m * PER_MILLION
        self._output = settings.output_per_m * PER_MILLION
        cached = settings.cached_input_per_m
        self._cached = self._input if cached is None else cached * PER_MILLION
        self._request = settings.per_request * NANO
        self.free = not (self._input or self._output or self._cached or self._request)

    def of(self, usage: Usage) -> int:
        """Rounded up."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cost = (usage.prompt_tokens - cached) * self._input + cached * self._cached
        return math.ceil(round(cost + usage.completion_tokens * self._output + self._request, 3))

    def at_most(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Whatever of the prompt is cached."""
        cost = prompt_tokens * max(self._input, self._cached) + completion_tokens * self._output + self._request
        return math.ceil(round(cost, 3))
