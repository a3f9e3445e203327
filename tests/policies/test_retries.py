from datetime import UTC, datetime

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
from policies.retries import deserves_another, pause_s, retry_after_s


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


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("1.5", 1.5),
        ("Thu, 01 Jan 2026 00:00:09 GMT", 9.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
    ]
    + [(value, None) for value in (None, "", "soon", "-5", "1e400", "\u0663")],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOW) == seconds


def test_pauses_grow_to_a_limit_and_are_spread() -> None:
    failure = UpstreamBroken("b", "500")
    assert [pause_s(failure, failed=failed, jitter=1.0) for failed in (1, 2, 3, 20)] == [0.25, 0.5, 1.0, 10.0]
    assert pause_s(failure, failed=1, jitter=0.0) == 0.125


def test_what_the_upstream_asks_for_is_kept_unless_it_is_too_long() -> None:
    def refused(status: int, retry_after: str | None) -> UpstreamRefused:
        return UpstreamRefused("b", status, "m", type_="t", code=None, param=None, retry_after=retry_after)

    assert pause_s(refused(429, "3"), failed=1, jitter=0.5, now=NOW) == 3.0
    assert pause_s(refused(429, "10.5"), failed=1, jitter=0.5, now=NOW) is None
    assert pause_s(refused(429, None), failed=1, jitter=1.0, now=NOW) == 0.25
    assert pause_s(refused(400, "3"), failed=1, jitter=0.5, now=NOW) is None
    assert pause_s(refused(404, None), failed=1, jitter=0.5, now=NOW) is None
