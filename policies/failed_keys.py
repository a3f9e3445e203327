"""Addresses that try keys which do not exist. Too many of them, and for the rest of the minute nobody from there is let in but
those who have been let in from there before: clients behind the same proxy go on, guesses are not even looked at. A key that
was unknown a moment ago and no longer is (another process has just made it) is no guess.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from policies.errors import KeysThrottled, KeyUnknown
from policies.roles import Caller

WINDOW_S = 60.0

MAX_ADDRESSES = 10_000
"""That have failed lately; the longest known are forgotten."""

MAX_TRIED = 32
"""Unknown keys of one address that are remembered."""

MAX_KNOWN = 100_000
"""Pairs of address and key."""


@dataclass(slots=True)
class _Minute:
    """Of one address."""

    ends_s: float
    failures: int = 0
    tried: set[int] = field(default_factory=set)
    """Hashes of keys that were unknown."""


class FailedKeys:
    """
    Args:
        allowed: failures of an address within a minute; None: any number.
        clock: seconds that never go back.
        throttled: told of each address when it is one too many.
    """

    def __init__(
        self,
        allowed: int | None,
        *,
        clock: Callable[[], float],
        throttled: Callable[[str], None] | None = None,
    ) -> None:
        self._allowed = allowed
        self._clock = clock
        self._throttled = throttled
        self._failures: OrderedDict[str, _Minute] = OrderedDict()
        """By address."""
        self._known: set[tuple[str, int]] = set()
        """Address and hash of a key that was let in from there."""

    def judged(self, address: str, secret: str, caller: Caller | None) -> Caller:
        """
        Args:
            caller: whom the key belongs to; None: there is no such key.

        Raises:
            KeyUnknown, KeysThrottled
        """
        pair = (address, hash(secret))
        if self._allowed is not None and pair not in self._known:
            self._look_at(network_of(address), pair[1], unknown=caller is None)
        if caller is None:
            raise KeyUnknown  # of one that was let in before: it ended, and is no guess
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(pair)
        return caller

    def _look_at(self, network: str, secret: int, *, unknown: bool) -> None:
        wait_s = self._shut_for_s(network)
        if wait_s is not None and (unknown or secret not in self._failures[network].tried):
            raise KeysThrottled(wait_s)
        if unknown:
            self._count(network, secret)

    def _shut_for_s(self, network: str) -> float | None:
        minute = self._failures.get(network)
        if minute is None or self._allowed is None or minute.failures < self._allowed:
            return None
        left_s = minute.ends_s - self._clock()
        return left_s if left_s > 0 else None

    def _count(self, network: str, secret: int) -> None:
        now_s = self._clock()
        minute = self._failures.pop(network, None)
        if minute is None or minute.ends_s <= now_s:
            minute = _Minute(now_s + WINDOW_S)
        self._failures[network] = minute
        minute.failures += 1
        if len(minute.tried) < MAX_TRIED:
            minute.tried.add(secret)
        if minute.failures == self._allowed and self._throttled is not None:
            self._throttled(network)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)


def network_of(address: str) -> str:
    """Whoever has one address of IPv6 has the other 2^64 beside it."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Address(int(parsed) >> 64 << 64)) + "/64"
