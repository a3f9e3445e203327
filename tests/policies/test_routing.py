import pytest

from policies.routing import RouteCycle, Station, attempts, expand
from policies.settings import RouteEntry, RouteSettings

BACKENDS = ["local", "openai", "azure"]


def routes(**models: list[str | dict[str, str]]) -> dict[str, RouteSettings]:
    return {
        name: RouteSettings(name=name, route=[RouteEntry(**one) if isinstance(one, dict) else one for one in route])
        for name, route in models.items()
    }


def test_stations_keep_the_order_of_the_route_and_the_name_of_the_model() -> None:
    assert expand("fast", routes(fast=["openai", "local"]), BACKENDS) == [("openai", "fast"), ("local", "fast")]


def test_an_entry_may_give_the_name_that_its_backend_uses() -> None:
    models = routes(fast=[{"backend": "openai", "model": "gpt-4o-mini"}, {"backend": "local"}])
    assert expand("fast", models, BACKENDS) == [("openai", "gpt-4o-mini"), ("local", "fast")]


def test_a_model_in_a_route_stands_for_all_of_its_stations() -> None:
    models = routes(auto=["fast", "azure"], fast=["local", "deep"], deep=["openai"])
    assert expand("auto", models, BACKENDS) == [("local", "fast"), ("openai", "deep"), ("azure", "auto")]


def test_a_station_is_asked_once() -> None:
    models = routes(auto=["fast", "fast", "also"], fast=["local"], also=[{"backend": "local", "model": "fast"}])
    assert expand("auto", models, BACKENDS) == [("local", "fast")]


def test_a_backend_wins_over_a_model_of_its_name() -> None:
    assert expand("local", routes(local=["local", "openai"]), BACKENDS) == [("local", "local"), ("openai", "local")]


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
    assert expand("a", models, BACKENDS) == [("openai", "d"), ("azure", "c")]


def test_an_entry_that_is_neither_backend_nor_model_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        expand("a", routes(a=["nowhere"]), BACKENDS)


def test_attempts_leave_out_what_the_caller_may_not_use_and_keep_the_order() -> None:
    stations = [Station("openai", "m"), Station("local", "m"), Station("azure", "n")]
    assert attempts(stations, allowed=lambda backend: backend != "local") == [("openai", "m"), ("azure", "n")]
    assert attempts(stations, allowed=lambda _: False) == []
