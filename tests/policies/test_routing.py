import pytest

from backends.health import Facts
from policies.routing import RouteCycle, Station, attempts, expand
from policies.settings import RouteEntry, RouteSettings

BACKENDS = ["local", "openai", "azure"]


def routes(**models: list[str | dict[str, str]]) -> dict[str, RouteSettings]:
    return {
        name: RouteSettings(name=name, route=[RouteEntry(**one) if isinstance(one, dict) else one for one in route])
        for name, route in models.items()
    }


def pairs(name: str, models: dict[str, RouteSettings]) -> list[tuple[str, str]]:
    return [(station.backend, station.model) for station in expand(name, models, BACKENDS)]


def test_stations_keep_the_order_of_the_route_and_the_name_of_the_model() -> None:
    assert pairs("fast", routes(fast=["openai", "local"])) == [("openai", "fast"), ("local", "fast")]


def test_an_entry_may_give_the_name_that_its_backend_uses() -> None:
    models = routes(fast=[{"backend": "openai", "model": "gpt-4o-mini"}, {"backend": "local"}])
    assert pairs("fast", models) == [("openai", "gpt-4o-mini"), ("local", "fast")]


def test_a_model_in_a_route_stands_for_all_of_its_stations() -> None:
    models = routes(auto=["fast", "azure"], fast=["local", "deep"], deep=["openai"])
    assert pairs("auto", models) == [("local", "fast"), ("openai", "deep"), ("azure", "auto")]


def test_a_station_is_asked_once() -> None:
    models = routes(auto=["fast", "fast", "also"], fast=["local"], also=[{"backend": "local", "model": "fast"}])
    assert pairs("auto", models) == [("local", "fast")]


def test_a_backend_wins_over_a_model_of_its_name() -> None:
    assert pairs("local", routes(local=["local", "openai"])) == [("local", "local"), ("openai", "local")]


@pytest.mark.parametrize(
    ("models", "way"),
    [
        (routes(a=["a"]), "a -> a"),
        (routes(a=["local", "b"], b=["a"]), "a -> b -> a"),
        (routes(a=["b"], b=["c"], c=["b"]), "a -> b -> c -> b"),
    ],
)
def test_a_route_that_leads_back_to_itself_is_named(models: dict[str, RouteSettings], way: str) -> None:
    with pytest.raises(RouteCycle, match=f"'a' leads back to itself: {way}$"):
        expand("a", models, BACKENDS)


def test_a_diamond_is_no_cycle() -> None:
    models = routes(a=["b", "c"], b=["d"], c=["d", "azure"], d=["openai"])
    assert pairs("a", models) == [("openai", "d"), ("azure", "c")]


def test_an_entry_that_is_neither_backend_nor_model_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        expand("a", routes(a=["nowhere"]), BACKENDS)


FACTS = {"openai": Facts(4, 0.9), "local": Facts(3, 0.2), "azure": Facts(0, None)}
STATIONS = [Station("openai", "m", 4), Station("local", "m", 1), Station("azure", "n", 5)]


def order(strategy: str, *, draw: float = 0.0, without: str = "") -> str:
    """The first letters of the backends, in the order in which they are asked."""
    found = attempts(
        STATIONS,
        strategy=strategy,
        allowed=lambda backend: backend != without,
        facts=FACTS.__getitem__,
        draw=lambda: draw,
    )
    return "".join(station.backend[0] for station in found)


@pytest.mark.parametrize("strategy", ["order", "weighted", "least_busy", "fastest"])
def test_what_the_caller_may_not_use_is_left_out_and_all_else_remains(strategy: str) -> None:
    assert sorted(order(strategy, without="local")) == ["a", "o"]
    assert sorted(order(strategy)) == ["a", "l", "o"]
    assert (
        attempts(STATIONS, strategy=strategy, allowed=lambda _: False, facts=FACTS.__getitem__, draw=lambda: 0.5) == []
    )


def test_order_is_the_order_of_the_route() -> None:
    assert order("order") == "ola"


@pytest.mark.parametrize(
    ("draw", "expected"), [(0.0, "ola"), (0.39, "ola"), (0.41, "loa"), (0.49, "loa"), (0.51, "aol"), (0.999, "aol")]
)
def test_a_weight_is_a_share_of_the_draws_and_the_others_follow_in_order(draw: float, expected: str) -> None:
    assert order("weighted", draw=draw) == expected


def test_the_least_busy_for_its_weight_comes_first() -> None:
    assert order("least_busy") == "aol"


def test_the_fastest_comes_first_and_those_never_asked_before_it() -> None:
    assert order("fastest") == "alo"


def test_a_weight_of_the_configuration_reaches_its_station() -> None:
    models = {"m": RouteSettings(name="m", route=[RouteEntry(backend="openai", weight=3), "local"])}
    assert [station.weight for station in expand("m", models, BACKENDS)] == [3.0, 1.0]
