"""Series are bounded by the configuration, whatever clients send."""

import secrets

import httpx
import pytest

from gateway.exchange import Exchange, limit_headers, span
from gateway.metrics import Metrics
from policies.quotas import Measure, Standing
from tests.running import Gateway


def series(http: httpx.Client) -> set[str]:
    text = http.get("/metrics").text
    return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line and not line.startswith("#")}


def test_random_names_paths_agents_and_keys_make_no_new_series(gateway: Gateway) -> None:
    def fire(http: httpx.Client) -> None:
        word = secrets.token_hex(4)
        http.post("/v1/chat/completions", json={"model": word, "messages": []}, headers={"user-agent": word})
        http.post("/v1/embeddings", json={"model": word, "input": word})
        http.get(f"/v1/{word}")
        http.get("/v1/models", headers={"authorization": f"Bearer sk-{word}"})

    with gateway.http as http:
        fire(http)
        before = series(http)
        for _ in range(50):
            fire(http)
        assert series(http) == before


def test_a_code_that_an_upstream_invented_counts_as_other() -> None:
    metrics = Metrics(errors=["upstream_error"])
    metrics.name(models=["m"], backends=["b"])
    for error in ("invented_by_upstream", "upstream_error", ""):
        exchange = Exchange("req_1", "/", 0.0, operation="chat", entry="m", backend="b", error=error)
        metrics.observe(exchange, 400, 0.1)
    text = metrics.render().decode()
    assert "invented" not in text
    assert 'error_type="other"' in text
    assert 'error_type="upstream_error"' in text


def test_names_and_labels_are_the_documented_ones(gateway: Gateway) -> None:
    from tests.conftest import ROOT

    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    with gateway.http as http:
        names = {line.split()[2] for line in http.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    assert names == {row.split("`")[1] for row in page.splitlines() if row.startswith("| `")}


def test_the_process_tells_its_tasks_memory_and_descriptors(gateway: Gateway) -> None:
    """What `make soak` watches."""
    with gateway.http as http:
        values = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines())
    assert float(values["chasqui_event_loop_tasks"]) >= 2  # the server's own, and this request's
    assert float(values["process_resident_memory_bytes"]) > 2**20
    assert float(values["process_open_fds"]) > 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (0.0001, "1ms"),
        (1, "1s"),
        (59.6, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (86_461, "24h1m1s"),
    ],
)
def test_spans_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_there_is_no_header_where_there_is_no_limit() -> None:
    assert limit_headers({}) == {}
    assert limit_headers({Measure.TOKENS: Standing(10, 4, 6.0)}) == {
        "x-ratelimit-limit-tokens": "10",
        "x-ratelimit-remaining-tokens": "4",
        "x-ratelimit-reset-tokens": "6s",
    }
