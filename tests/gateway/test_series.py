"""Our counters and histograms give the page that prometheus-client's own would."""

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from gateway.series import Counter, Histogram

BOUNDS = (0.1, 0.5, 1.0, 10.0)
VALUES = st.floats(0, 20, allow_nan=False) | st.sampled_from(BOUNDS)
STEPS = st.lists(st.tuples(st.sampled_from(["a", 'quote"', "line\nend"]), VALUES), max_size=30)


@given(steps=STEPS)
def test_the_page_is_the_same(steps: list[tuple[str, float]]) -> None:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counter, histogram = Counter("c", "Words.", ["label"]), Histogram("h_seconds", "Words.", BOUNDS, ["label"])
    ours.register(counter)
    ours.register(histogram)
    their_counter = prometheus_client.Counter("c", "Words.", ["label"], registry=theirs)
    their_histogram = prometheus_client.Histogram("h_seconds", "Words.", ["label"], buckets=BOUNDS, registry=theirs)
    for label, value in steps:
        counter.add((label,), value)
        histogram.observe((label,), value)
        their_counter.labels(label).inc(value)
        their_histogram.labels(label).observe(value)
    assert generate_latest(ours) == generate_latest(theirs)
