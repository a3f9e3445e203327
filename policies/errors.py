"""What a policy can say no with. Facts only; `gateway/errors.py` turns them into HTTP."""

from collections.abc import Mapping

from policies.quotas import Limit, Measure, Standing


class PolicyError(Exception):
    """Base of all refusals."""


class KeyUnknown(PolicyError):
    """No key, an unknown, disabled or expired one. The caller is not told which."""

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided. Send a valid key as 'Authorization: Bearer sk-…'.")


class KeyNotFound(PolicyError):
    """An administrative call names a key that does not exist."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key '{key_id}'")


class RoleUnknown(PolicyError):
    def __init__(self, role: str, known: list[str]) -> None:
        super().__init__(f"there is no role '{role}'; the configuration has: {', '.join(known)}")


class PathForbidden(PolicyError):
    """An /admin path and a role that does not name it."""

    def __init__(self, path: str) -> None:
        super().__init__(f"this key's role does not allow {path}")


class PathHidden(PolicyError):
    """Any other path that the role does not name: answered as if it did not exist."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path} here")


class ModelUnknown(PolicyError):
    """Does not exist, or this key may not use it; the answer is the same."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model[:200]}' does not exist or you do not have access to it.")
        self.model = model


class QuotaExceeded(PolicyError):
    """
    Args:
        limit: the one that will be free last.
        retry_after_s: seconds until its window frees enough for this request; None if it never will.
        standings: where all windows stand, by measure.
    """

    def __init__(
        self, limit: Limit, *, needed: int, retry_after_s: float | None, standings: Mapping[Measure, Standing]
    ) -> None:
        window = f" per {_span(limit.per_s)}" if limit.per_s else ""
        never = "; this request alone is larger than the limit" if retry_after_s is None else ""
        super().__init__(
            f"Rate limit reached: {limit.amount} {limit.measure}{window}, and this request needs {needed}{never}."
        )
        self.measure = limit.measure
        self.limit = limit.amount
        self.retry_after_s = retry_after_s
        self.standings = standings


class PromptInvalid(PolicyError):
    """A prompt file or its variables are wrong; the message names the prompt and the field."""


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:g}s"
