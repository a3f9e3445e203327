import pytest

from policies.errors import QuotaExceeded
from policies.quotas import Limit, Measure


@pytest.mark.parametrize(
    ("per_s", "words"),
    [(10.0, "5 tokens per 10s,"), (60.0, "per 1m,"), (5400.0, "per 90m,"), (86_400.0, "per 1d,"), (None, "5 tokens,")],
)
def test_a_refusal_says_limit_window_and_need(per_s: float | None, words: str) -> None:
    error = QuotaExceeded(Limit("k", Measure.TOKENS, 5, per_s), needed=7, retry_after_s=3.0, standings={})
    assert words in str(error)
    assert "needs 7." in str(error)
    assert (error.measure, error.limit, error.retry_after_s) == ("tokens", 5, 3.0)
