from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.spans import PERIODS, Calendar, Rolling, Span, expires_s, reaches_back_to_s, span_of

SPANS: list[Span] = [Rolling(10.0), Rolling(3600.0), Rolling(30 * 86_400.0), *map(Calendar, PERIODS)]


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("unit", "at", "begins", "ends"),
    [
        ("hour", "2026-11-20T18:59:59", "2026-11-20T18:00:00", "2026-11-20T19:00:00"),
        ("day", "2026-11-20T00:00:00", "2026-11-20T00:00:00", "2026-11-21T00:00:00"),
        ("week", "2026-11-22T23:59:59", "2026-11-16T00:00:00", "2026-11-23T00:00:00"),
        ("month", "2024-02-29T12:00:00", "2024-02-01T00:00:00", "2024-03-01T00:00:00"),
        ("month", "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_a_calendar_window_begins_and_ends_with_its_period_in_utc(unit: str, at: str, begins: str, ends: str) -> None:
    span = Calendar(unit)
    number = span.slice_at(unix(at))
    assert (span.start_s(number), expires_s(span, number)) == (unix(begins), unix(ends))
    assert reaches_back_to_s(span, unix(at)) == unix(begins)


@pytest.mark.parametrize("span", SPANS, ids=str)
@given(now_s=st.floats(0, 4e9))
def test_every_moment_lies_in_its_slice_and_a_slice_counts_for_the_whole_window(span: Span, now_s: float) -> None:
    number = span.slice_at(now_s)
    slack = 1e-6
    assert span.start_s(number) - slack <= now_s < span.start_s(number + 1) + slack
    assert expires_s(span, number) > now_s - slack
    if isinstance(span, Rolling):
        assert now_s + span.seconds <= expires_s(span, number) + slack
        assert reaches_back_to_s(span, now_s) <= now_s - span.seconds + slack


@pytest.mark.parametrize(
    ("words", "span"), [("90m", Rolling(5400.0)), ("30d", Rolling(2_592_000.0)), ("month", Calendar("month"))]
)
def test_words_for_spans(words: str, span: Span) -> None:
    assert span_of(words) == span
    assert str(span) == words


@pytest.mark.parametrize("words", ["", "9s", "31d", "1w", "year", "1.5h", "-1h", "months"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match="between 10s and 30d, or one of hour, day, week, month"):
        span_of(words)
