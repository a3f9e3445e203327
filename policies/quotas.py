"""How much of it: taken before the work (a hold), corrected after. One admission is one atomic step over all limits."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from policies.settings import LimitSettings, seconds_of


class Measure(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"


class Limit(NamedTuple):
    """At most `amount` of `measure`: in any window of `per_s` seconds, or at any moment where `per_s` is None."""

    scope: str
    """Whose counter: the same scope, measure and window share one."""
    measure: Measure
    amount: int
    per_s: float | None


class Standing(NamedTuple):
    """Where the tightest window of one measure stands after an admission."""

    limit: int
    remaining: int
    reset_s: float
    """Until the window is as if nothing had been used."""


Amounts = Mapping[Measure, int]


class QuotaStore(Protocol):
    """Implementations: `quotas_memory.MemoryQuotas`. All calls for one request carry its id and may be repeated."""

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        """Take all of `amounts` from all limits, or nothing.

        Raises:
            QuotaExceeded: for the limit that will be free last.
        """
        ...

    async def raise_to(self, request_id: str, tokens: int) -> None:
        """Make the hold on tokens at least this large.

        Raises:
            QuotaExceeded: the hold is as it was.
        """
        ...

    def standing(self, request_id: str) -> dict[Measure, Standing]:
        """Where the windows of a request that holds something stand, as far as that is known without waiting."""
        ...

    def settle(self, request_id: str, tokens: int) -> dict[Measure, Standing]:
        """The work has ended and used this many tokens: correct the hold and give the concurrency slot back.

        More than was held becomes a debt. Never fails, never waits, does nothing for an id that holds nothing.

        Returns:
            As `standing`, afterwards.
        """
        ...


def limits_of(settings: Iterable[LimitSettings], *, scope: str) -> list[Limit]:
    limits = []
    for one in settings:
        for measure in Measure:
            amount = getattr(one, measure.value)
            if amount is not None:
                limits.append(Limit(scope, measure, amount, seconds_of(one.per) if one.per else None))
    return limits
