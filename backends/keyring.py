"""Several keys for one provider. One is used until the provider refuses it; then the next, and the refused one rests."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

REFUSED_REST_S = 300.0
"""After 401 or 403. Not for ever: a provider's own trouble looks the same."""
LIMITED_REST_S = 10.0
"""After 429 without a Retry-After."""

REFUSALS = frozenset({401, 403, 429})


class KeyRing:
    """
    Args:
        headers: what each key adds to a request, the one to be used first in front.
        clock: seconds that never go back.
    """

    def __init__(self, headers: Sequence[Mapping[str, str]], clock: Callable[[], float] | None = None) -> None:
        self._headers = list(headers) or [{}]
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._rests_until_s = [0.0] * len(self._headers)
        self._current = 0

    def added_to(self, headers: Mapping[str, str]) -> list[dict[str, str]]:
        """`headers` with those of each key, by its index."""
        return [{**headers, **key} for key in self._headers]

    def turns(self) -> Iterator[int]:
        """Indices of the keys to try for one request: those that do not rest, from the present one on. At least one."""
        if len(self._headers) == 1:
            yield 0
            return
        now_s, size = self._clock(), len(self._headers)
        order = [(self._current + step) % size for step in range(size)]
        awake = [index for index in order if self._rests_until_s[index] <= now_s]
        for index in awake or [min(order, key=lambda index: self._rests_until_s[index])]:
            self._current = index
            yield index

    @property
    def present(self) -> int:
        """The key in use, for what is no request."""
        return self._current

    def refused(self, index: int, status: int, retry_after: str | None) -> None:
        rest_s = REFUSED_REST_S if status != 429 else _seconds(retry_after)
        self._rests_until_s[index] = self._clock() + rest_s
        self._current = (index + 1) % len(self._headers)


def _seconds(retry_after: str | None) -> float:
    value = (retry_after or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return LIMITED_REST_S
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
