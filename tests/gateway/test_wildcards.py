"""Names that stand for many."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.upstream import Line, Received, answer_of, playing
from tests.running import running

ASK = [{"role": "user", "content": "hi"}]


def echo(request: Received, line: Line) -> None:
    line.answer(200, answer_of("hello", model=request.json["model"]))


def test_a_name_ends_at_the_closest_entry_and_goes_upstream_as_the_route_says(tmp_path: Path) -> None:
    with playing(echo) as up:
        models: list[dict[str, Any]] = [
            {"name": "*", "route": ["up"]},
            {"name": "openai/*", "route": [{"backend": "up", "model": "*"}]},
            {"name": "openai/o1*", "route": [{"backend": "up", "model": "reasoning-*"}]},
            {"name": "openai/gpt-4o", "route": [{"backend": "up", "model": "exact"}]},
        ]
        backends = [{"name": "up", "engine": "openai", "base_url": up.base_url}]
        with running(tmp_path, {"backends": backends, "models": models}) as gateway:
            client = gateway.sdk()
            for asked, theirs in {
                "mistral/large": "mistral/large",
                "openai/gpt-5": "gpt-5",
                "openai/o1-mini": "reasoning--mini",
                "openai/gpt-4o": "exact",
            }.items():
                answer = client.chat.completions.with_raw_response.create(model=asked, messages=ASK)  # type: ignore[arg-type]
                assert up.received[-1].json["model"] == theirs
                assert (answer.parse().model, answer.headers["x-chasqui-model"]) == (asked, theirs)
            assert [model.id for model in client.models.list()] == ["openai/gpt-4o"]
            with gateway.http as http:
                metrics = http.get("/metrics").text
            assert 'model="openai/*"' in metrics
            assert "gpt-5" not in metrics


@pytest.mark.parametrize("name", ["openai/", "openai/with\nline", "openai/ü", "openai/" + "x" * 300])
def test_odd_names_are_no_names(tmp_path: Path, name: str) -> None:
    with playing(echo) as up:
        backends = [{"name": "up", "engine": "openai", "base_url": up.base_url}]
        models = [{"name": "openai/*", "route": ["up"]}]
        with running(tmp_path, {"backends": backends, "models": models}) as gateway, gateway.http as http:
            answer = http.post("/v1/chat/completions", json={"model": name, "messages": ASK})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_role_names_what_a_client_asks_for_not_the_entry(tmp_path: Path) -> None:
    with playing(echo) as up:
        config = {
            "backends": [{"name": "up", "engine": "openai", "base_url": up.base_url}],
            "models": [{"name": "openai/*", "route": ["up"]}],
            "roles": [{"name": "mini", "models": ["openai/*-mini"]}],
        }
        with running(tmp_path, config) as gateway, gateway.http as http:
            headers = {"authorization": f"Bearer {gateway.new_key(role='mini')}"}
            statuses = [
                http.post("/v1/chat/completions", json={"model": name, "messages": ASK}, headers=headers).status_code
                for name in ("openai/gpt-4o-mini", "openai/gpt-4o")
            ]
            assert statuses == [200, 404]
