"""What a policy can say no with. Facts only; `gateway/errors.py` turns them into HTTP."""

from collections.abc import Mapping

from policies.quotas import Limit, Measure, Standing


class PolicyError(Exception):
    """Base of all refusals."""


class KeyUnknown(PolicyError):
    """No key, an unknown, disabled or expired one. The caller is not told which."""

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided. Send a valid key as 'Authorization: Bearer sk-…'.")


class KeysThrottled(PolicyError):
    """Too many unknown keys came from this address; whether this one is known is not said."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("Too many requests with unknown keys came from this address; try again later.")
        self.retry_after_s = retry_after_s


class RoleForbidden(PolicyError):
    """Only administrators hand out what reaches /admin."""

    def __init__(self, role: str) -> None:
        super().__init__(
            f"the role '{role}' reaches /admin; only a key of the role 'admin' may make or change its keys"
        )


class KeyNotFound(PolicyError):
    """An administrative call names a key that does not exist."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key '{key_id}'")


class NotThere(PolicyError):
    """An id that does not exist, or not for this caller."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} '{name[:200]}'")


class RoleUnknown(PolicyError):
    param = "role"

    def __init__(self, role: str, known: list[str]) -> None:
        super().__init__(f"there is no role '{role[:128]}'; the configuration has: {', '.join(known)}")


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
        measure = limit.measure
        window = f" per {limit.span}" if limit.span else ""
        model = f" for {limit.scope.model}" if limit.scope.model else ""
        never = "; this request alone is larger than the limit" if retry_after_s is None else ""
        super().__init__(
            f"Rate limit reached: {_amount(limit.amount, measure)}{window}{model}, "
            f"and this request needs {needed / measure.unit:.15g}{never}."
        )
        self.measure = measure
        self.limit = limit.amount
        self.retry_after_s = retry_after_s
        self.standings = standings


class QuotaStoreDown(PolicyError):
    """Whether a request keeps within its limits cannot be told now, so it is not let in."""

    retry_after_s = 1.0

    def __init__(self, why: str) -> None:
        super().__init__("The store of the limits does not answer; try again in a moment.")
        self.why = why
        """For the log; it may name hosts."""


class PromptInvalid(PolicyError):
    """A prompt file or its variables are wrong; the message names the prompt and the field."""


def _amount(amount: int, measure: Measure) -> str:
    return f"{amount / measure.unit:.15g} {measure}"
