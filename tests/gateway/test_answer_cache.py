"""Kept answers of chats, through a whole gateway."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.llamacpp.synthetic import write_synthetic
from tests.running import Gateway, running


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, synthetic_gguf: Path) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("answers")
    write_synthetic(home / "other.gguf", seed=12)
    with running(home, config(synthetic_gguf, {"enabled": True})) as gateway:
        yield gateway


def config(model: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "answer_cache": settings,
        "backends": [{"name": "chat", "engine": "llama_cpp", "model": str(model), "context_tokens": 2048}],
        "models": [{"name": "guide", "route": ["chat"]}],
        "roles": [{"name": "default", "limits": [{"per": "1h", "requests": 1000}, {"per": "1h", "tokens": 100_000}]}],
    }


def ask(house: Gateway, key: str | None = None, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": fields.pop("content", "Where does the road go?")}]
    body = {"model": "guide", "messages": messages, "max_tokens": 8, "temperature": 0} | fields
    with house.http as http:
        if key is not None:
            http.headers["authorization"] = f"Bearer {key}"
        answer = http.post("/v1/chat/completions", json=body, headers=headers or {})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_the_same_question_of_the_same_key_has_the_same_answer_byte_by_byte(
    house: Gateway, fields: dict[str, Any]
) -> None:
    key, other = house.new_key(), house.new_key()
    first = ask(house, key, **fields)
    assert first.headers["x-chasqui-cache"] == "miss"
    last = ask(house, key, **fields)
    while last.headers["x-chasqui-cache"] != "hit":  # it is kept a moment later
        first, last = last, ask(house, key, **fields)
    assert last.headers["content-type"] == first.headers["content-type"]
    assert last.content == first.content
    assert ask(house, other, **fields).headers["x-chasqui-cache"] == "miss", "what others asked is theirs"


def test_a_hit_counts_as_a_request_and_costs_no_tokens(house: Gateway) -> None:
    key = house.new_key()
    while (answer := ask(house, key)).headers["x-chasqui-cache"] != "hit":
        pass
    after = ask(house, key)
    left = [
        (int(one.headers["x-ratelimit-remaining-requests"]), int(one.headers["x-ratelimit-remaining-tokens"]))
        for one in (answer, after)
    ]
    assert left[1] == (left[0][0] - 1, left[0][1])
    assert "x-chasqui-backend" not in after.headers


def test_what_differs_or_may_not_be_kept_is_asked_anew(house: Gateway) -> None:
    key = house.new_key()
    while ask(house, key).headers["x-chasqui-cache"] != "hit":
        pass
    for fields in ({"max_tokens": 9}, {"seed": 1}, {"content": "Where?"}, {"stream": True}):
        assert ask(house, key, **fields).headers["x-chasqui-cache"] == "miss"
    for fields in ({"temperature": 0.5}, {"temperature": None}):
        assert "x-chasqui-cache" not in ask(house, key, **fields).headers
    assert "x-chasqui-cache" not in ask(house, key, headers={"cache-control": "no-store"}).headers
    assert ask(house, key, headers={"cache-control": "no-cache"}).headers["x-chasqui-cache"] == "miss"


def test_a_client_may_ask_for_it_at_any_temperature(house: Gateway) -> None:
    key = house.new_key()
    wish = {"x-chasqui-answer-cache": "on"}
    first = ask(house, key, wish, temperature=1.0)
    while (again := ask(house, key, wish, temperature=1.0)).headers["x-chasqui-cache"] != "hit":
        first = again
    assert again.content == first.content


def test_another_file_behind_the_name_is_another_model(house: Gateway) -> None:
    key = house.new_key()
    while ask(house, key).headers["x-chasqui-cache"] != "hit":
        pass
    with house.http as http:
        assert http.post("/admin/backends/chat", json={"action": "swap", "model": "other.gguf"}).status_code == 200
        assert ask(house, key).headers["x-chasqui-cache"] == "miss"
        assert http.get("/admin/cache").json()["answers"]["count"] > 0
        http.delete("/admin/cache", params={"everything": "true"})
        assert ask(house, key, content="never asked before").headers["x-chasqui-cache"] == "miss"


def test_it_is_off_unless_it_is_switched_on(tmp_path: Path, synthetic_gguf: Path) -> None:
    with running(tmp_path, config(synthetic_gguf, {})) as gateway:
        for _ in range(2):
            assert "x-chasqui-cache" not in ask(gateway, headers={"x-chasqui-answer-cache": "on"}).headers


def test_other_settings_are_another_question_and_a_stand_in_is_not_kept(tmp_path: Path, synthetic_gguf: Path) -> None:
    made = config(synthetic_gguf, {"enabled": True})
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    made["backends"].append({"name": "broken", "engine": "llama_cpp", "model": "broken.gguf"})
    made["models"].append({"name": "mended", "route": ["broken", "chat"]})
    with running(tmp_path, made) as gateway:
        while ask(gateway, max_tokens=None, content="Why?").headers["x-chasqui-cache"] != "hit":
            pass
        for _ in range(3):
            answer = ask(gateway, model="mended")
            assert (answer.headers["x-chasqui-cache"], answer.headers["x-chasqui-backend"]) == ("miss", "chat")
        made["models"][0]["default_max_tokens"] = 5
        assert gateway.reload(made)
        assert ask(gateway, max_tokens=None, content="Why?").headers["x-chasqui-cache"] == "miss"


def test_a_model_file_that_is_gone_costs_a_hit_and_not_the_answer(tmp_path: Path, synthetic_gguf: Path) -> None:
    made = config(synthetic_gguf, {"enabled": True})
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(b"GGUF")
    made["backends"].append({"name": "gone", "engine": "llama_cpp", "model": "gone.gguf"})
    made["models"].append({"name": "mended", "route": ["gone", "chat"]})
    with running(tmp_path, made) as gateway:
        gone.unlink()
        answer = ask(gateway, model="mended")
    assert answer.headers["x-chasqui-backend"] == "chat"
    assert "x-chasqui-cache" not in answer.headers
