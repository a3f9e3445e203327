import pytest
from pydantic import ValidationError

from policies.settings import KeySettings, LimitSettings, RoleSettings, RouteSettings
from policies.spans import Rolling, span_of


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("10s", 10), ("90s", 90), ("5m", 300), ("1h", 3600), ("30d", 2_592_000), ("720h", 2_592_000)],
)
def test_spans_are_seconds(span: str, seconds: float) -> None:
    assert span_of(span) == Rolling(seconds)
    assert LimitSettings(per=span, requests=1).per == span


@pytest.mark.parametrize("span", ["", "9s", "0m", "31d", "721h", "1w", "1.5h", "-5m", "10", "s", " 10s", "10s\n", "1M"])
def test_other_spans_are_refused(span: str) -> None:
    with pytest.raises(ValueError, match="10s, 5m, 1h or 30d"):
        span_of(span)
    with pytest.raises(ValidationError, match="10s, 5m, 1h or 30d"):
        LimitSettings(per=span, requests=1)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"per": "1m"},
        {"requests": 1},
        {"tokens": 1},
        {"per": "1m", "requests": 1, "tokens": 1},
        {"per": "1m", "concurrent": 1},
        {"concurrent": 0},
        {"per": "1m", "requests": -1},
        {"per": "1m", "tokens": 10**15 + 1},
        {"per": "1m", "requests": 1, "cost_usd": 1},
        {"per": "month"},
        {"per": "month", "cost_usd": -0.01},
        {"cost_usd": 1},
        {"compute_s": 1},
        {"per": "1m", "requests": 1, "model": ""},
    ],
)
def test_a_limit_is_one_measure_with_the_window_it_needs(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LimitSettings.model_validate(fields)


def test_a_role_without_lists_may_use_models_and_the_v1_paths_but_no_collection() -> None:
    role = RoleSettings(name="default")
    assert (role.models, role.collections, role.paths, role.limits) == (["*"], [], ["/v1/*"], [])


@pytest.mark.parametrize("key_env", ["1KEY", "MY-KEY", "", "sk-abc.def"])
def test_a_given_key_names_an_environment_variable(key_env: str) -> None:
    with pytest.raises(ValidationError):
        KeySettings(name="ci", key_env=key_env)


def test_a_route_is_not_empty() -> None:
    with pytest.raises(ValidationError):
        RouteSettings(name="fast", route=[])
