import pytest

from policies.errors import QuotaExceeded
from policies.quotas import Limit, Measure, Scope
from policies.spans import Calendar, Rolling


@pytest.mark.parametrize(
    ("per_s", "words"),
    [(10.0, "5 tokens per 10s,"), (60.0, "per 1m,"), (5400.0, "per 90m,"), (86_400.0, "per 1d,"), (None, "5 tokens,")],
)
def test_a_refusal_says_limit_window_and_need(per_s: float | None, words: str) -> None:
    error = QuotaExceeded(
        Limit(Scope("k"), Measure.TOKENS, 5, Rolling(per_s) if per_s else None),
        needed=7,
        retry_after_s=3.0,
        standings={},
    )
    assert words in str(error)
    assert "needs 7." in str(error)
    assert (error.measure, error.limit, error.retry_after_s) == ("tokens", 5, 3.0)


def test_a_refusal_writes_amounts_as_people_do() -> None:
    limit = Limit(Scope("k", "gpt-4*"), Measure.COST, 1_500_000_000, Calendar("month"))
    error = QuotaExceeded(limit, needed=20_000_000, retry_after_s=3.0, standings={})
    assert "1.5 cost_usd per month for gpt-4*, and this request needs 0.02." in str(error)
