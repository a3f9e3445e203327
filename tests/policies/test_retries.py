import pytest

from backends.errors import (
    BackendBusy,
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ContextLengthExceeded,
    InvalidRequest,
    ModelFileUnusable,
    UpstreamBroken,
    UpstreamRefused,
)
from policies.retries import deserves_another


def refused(status: int) -> UpstreamRefused:
    return UpstreamRefused("openai", status, "no", type_="invalid_request_error", code=None, param=None)


@pytest.mark.parametrize(
    ("failure", "another"),
    [
        (BackendUnavailable("local", "it crashed"), True),
        (BackendBusy("local", retry_after_s=1), True),
        (BackendTimeout("local", "first_byte", 60), True),
        (UpstreamBroken("openai", "status 500"), True),
        (refused(404), True),
        (refused(429), True),
        (refused(400), False),
        (refused(409), False),
        (refused(413), False),
        (refused(422), False),
        (InvalidRequest("no"), False),
        (ContextLengthExceeded(context_tokens=1, prompt_tokens=2), False),
        (ModelFileUnusable("missing"), False),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "status", "")),
)
def test_only_failures_that_are_not_the_requests_own_deserve_another_attempt(
    failure: BackendError, another: bool
) -> None:
    assert deserves_another(failure) is another
