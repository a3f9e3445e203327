"""Which failures deserve another attempt elsewhere. Only ever asked before the first byte went out."""

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


def deserves_another(failure: BackendError) -> bool:
    if isinstance(failure, UpstreamRefused):
        return failure.status in ELSEWHERE_MAY_HELP
    return isinstance(failure, BackendUnavailable | BackendBusy | BackendTimeout | UpstreamBroken)
