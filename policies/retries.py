"""Which failures deserve another attempt, where, and after what pause. Only ever asked before the first byte went out."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from backends.errors import (
    BackendBusy,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    UpstreamBroken,
    UpstreamRefused,
)

ELSEWHERE_MAY_HELP = frozenset({404, 429})
"""An upstream's words about itself (it lacks the model, it is out of quota), not about the request."""

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0
"""A `Retry-After` above this is not slept, it is passed on."""


def deserves_another(failure: BackendError) -> bool:
    """Whether the next station of the route may be asked."""
    if isinstance(failure, UpstreamRefused):
        return failure.status in ELSEWHERE_MAY_HELP
    return isinstance(failure, BackendUnavailable | BackendBusy | BackendTimeout | UpstreamBroken)


def pause_s(failure: BackendError, *, failed: int, jitter: float, now: datetime | None = None) -> float | None:
    """Seconds to wait before the same backend is asked again; None: it should not be.

    Args:
        failed: attempts on this backend so far, from 1.
        jitter: in [0, 1); spreads clients that failed together over half of the pause.
    """
    match failure:
        case UpstreamRefused(status=429):
            asked_s = retry_after_s(failure.retry_after, now or datetime.now(UTC))
        case BackendBusy() | BackendUnavailable():
            asked_s = failure.retry_after_s
        case UpstreamBroken(status=401 | 403):
            return None  # the same key would be refused again
        case UpstreamBroken() | BackendTimeout():
            asked_s = None
        case _:
            return None
    if asked_s is not None:
        return asked_s if asked_s <= LONGEST_PAUSE_S else None
    growing_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (failed - 1))
    return growing_s * (0.5 + jitter / 2)


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """A `Retry-After` header: seconds or an HTTP date (RFC 9110 §10.2.3); None where it is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if _SECONDS.fullmatch(value.strip()) else _until(value, now)
    except (ValueError, TypeError, OverflowError):
        return None


def _until(value: str, now: datetime) -> float:
    then: datetime = parsedate_to_datetime(value)
    return max(0.0, ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds())
