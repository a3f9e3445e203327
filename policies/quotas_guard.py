"""What happens to requests while the store of the quotas does not answer: nobody is let in, or everybody whom this process alone
would let in. Never 401, never longer than the store's timeout.

Requests that are let in are counted in this process from zero, and told to the store when it is back.
"""

import logging
from collections.abc import Callable, Sequence

from policies.errors import QuotaStoreDown
from policies.quotas import Amounts, Limit, Measure, QuotaStore, Standings
from policies.quotas_memory import MemoryQuotas

log = logging.getLogger("chasqui.quotas")


class GuardedQuotas:
    """
    Args:
        fallback: counts for this process alone; None: nobody is let in.
        counted: told of each request that met a store that did not answer: `denied` or `allowed`.
    """

    def __init__(
        self, store: QuotaStore, fallback: MemoryQuotas | None, *, counted: Callable[[str], None] | None = None
    ) -> None:
        self._store = store
        self._fallback = fallback
        self._counted = counted
        self._alone: dict[str, Sequence[Limit]] = {}
        """Requests that the fallback let in."""
        self.failing = False
        """The store did not answer the last time that it was asked."""

    @property
    def goes_on_alone(self) -> bool:
        """Requests are let in while the store does not answer."""
        return self._fallback is not None

    async def reserve(self, request_id: str, limits: Sequence[Limit], amounts: Amounts) -> None:
        try:
            await self._store.reserve(request_id, limits, amounts)
        except QuotaStoreDown as exc:
            fallback = self._went_on_without(exc)
            await fallback.reserve(request_id, limits, amounts)
            self._alone[request_id] = limits
        else:
            if limits:  # else nobody was asked
                self._answered()

    async def raise_to(self, request_id: str, amounts: Amounts) -> None:
        if request_id in self._alone and self._fallback is not None:
            await self._fallback.raise_to(request_id, amounts)
            return
        try:
            await self._store.raise_to(request_id, amounts)
        except QuotaStoreDown as exc:
            self._went_on_without(exc)  # what it uses is settled all the same

    def standing(self, request_id: str) -> Standings:
        return self._of(request_id).standing(request_id)

    def settle(self, request_id: str, used: Amounts) -> Standings:
        standings = self._of(request_id).settle(request_id, used)
        limits = self._alone.pop(request_id, None)
        if limits is not None:
            self._store.charge(request_id, limits, {Measure.REQUESTS: 1, **used})
        return standings

    def charge(self, request_id: str, limits: Sequence[Limit], used: Amounts) -> None:
        self._store.charge(request_id, limits, used)

    async def drain(self) -> None:
        await self._store.drain()

    async def aclose(self) -> None:
        await self._store.aclose()

    def _of(self, request_id: str) -> QuotaStore:
        return self._fallback if request_id in self._alone and self._fallback is not None else self._store

    def _went_on_without(self, failure: QuotaStoreDown) -> MemoryQuotas:
        """
        Raises:
            QuotaStoreDown: there is no going on.
        """
        if not self.failing:
            log.error("the store of the limits does not answer, requests are %s: %s", self._decision, failure.why)
        self.failing = True
        if self._counted is not None:
            self._counted(self._decision)
        if self._fallback is None:
            raise failure
        return self._fallback

    def _answered(self) -> None:
        if self.failing:
            log.info("the store of the limits answers again")
        self.failing = False

    @property
    def _decision(self) -> str:
        return "denied" if self._fallback is None else "allowed"
