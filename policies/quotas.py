"""How much of it: taken before the work (a hold), corrected after. One admission is one atomic step over all limits."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from policies.settings import LimitSettings
from policies.spans import Span, span_of


class Measure(StrEnum):
    """What is counted. Amounts are whole numbers: money in billionths of a dollar, time in milliseconds."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    COST = "cost_usd"
    COMPUTE = "compute_s"
    CONCURRENT = "concurrent"

    @property
    def unit(self) -> int:
        """How many of what is counted make one of what people write."""
        return UNITS.get(self, 1)


UNITS = {Measure.COST: 1_000_000_000, Measure.COMPUTE: 1000}


class Scope(NamedTuple):
    """Whose usage: of a key or of a role, for all models or for those that a glob names."""

    holder: str
    """A key's id, or `role:` and its name."""
    model: str | None = None

    def __str__(self) -> str:
        return f"{self.holder}@{self.model}" if self.model else self.holder


class Limit(NamedTuple):
    """At most `amount` of `measure`: in any window of `span`, or at any moment where there is none."""

    scope: Scope
    """The same scope, measure and span share one counter."""
    measure: Measure
    amount: int
    span: Span | None

    def applies_to(self, model: str) -> bool:
        return self.scope.model is None or fnmatchcase(model, self.scope.model)


class Standing(NamedTuple):
    """Where the tightest window of one measure stands after an admission."""

    limit: int
    remaining: int
    reset_s: float
    """Until the window is as if nothing had been used."""


Amounts = Mapping[Measure, int]
Standings = dict[Measure, Standing]


class QuotaStore(Protocol):
    """Implementations: `quotas_memory.MemoryQuotas`, `quotas_redis.RedisQuotas`, and `quotas_guard.GuardedQuotas` around one.

    All calls for one request carry its id and may be repeated. Limits are known by their identity: whoever asks gives the same
    sequence for the same limits.
    """

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        """Take all of `amounts` from all limits, or nothing.

        Raises:
            QuotaExceeded: for the limit that will be free last.
            QuotaStoreDown: nothing is known, and nothing was taken that will not be given back.
        """
        ...

    async def raise_to(self, request_id: str, amounts: Amounts) -> None:
        """Make the hold at least this large.

        Raises:
            QuotaExceeded, QuotaStoreDown: the hold is as it was.
        """
        ...

    def standing(self, request_id: str) -> Standings:
        """Where the windows of a request that holds something stand, as far as that is known without waiting."""
        ...

    def settle(self, request_id: str, used: Amounts) -> Standings:
        """The work has ended and used this much: correct the hold and give the concurrency slot back.

        More than was held becomes a debt. Measures that are not named stay as they are held. Never fails, never waits (it is
        in force when `drain` returns), does nothing for an id that holds nothing.

        Returns:
            As `standing`, afterwards.
        """
        ...

    def charge(self, request_id: str, limits: Sequence[Limit], used: Amounts) -> None:
        """Count what was used without having been reserved here, as soon as it can be. Never fails, never waits."""
        ...

    async def drain(self) -> None:
        """Until everything that has been settled by now is in force, or the store is known not to answer."""
        ...

    async def aclose(self) -> None: ...


class History(Protocol):
    """What was used before a store began to count."""

    async def used(
        self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
    ) -> Sequence[tuple[float, int]]:
        """(Unix seconds at which it was used at the latest, amount), of everything used since then and perhaps a little before.

        Args:
            whole: rather a little less, and nothing from before.

        Raises:
            QuotaStoreDown
        """
        ...

    async def recent(self, scope: Scope, measure: Measure, *, since_s: float, until_s: float) -> int:
        """Of what is known by now: the sum over requests that ended in that time.

        Raises:
            QuotaStoreDown
        """
        ...


class NoHistory:
    async def used(
        self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
    ) -> Sequence[tuple[float, int]]:
        return ()

    async def recent(self, scope: Scope, measure: Measure, *, since_s: float, until_s: float) -> int:
        return 0


def limits_of(settings: Iterable[LimitSettings], *, holder: str) -> list[Limit]:
    limits = []
    for one in settings:
        for measure in Measure:
            amount = getattr(one, measure.value)
            if amount is not None:
                span = span_of(one.per) if one.per else None
                limits.append(Limit(Scope(holder, one.model), measure, round(amount * measure.unit), span))
    return limits
