"""Models that a configuration names by where they come from, in a gateway over a real socket; a server on loopback plays the hub."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.backends.pulling.hub import Hub, playing
from tests.running import Gateway, running


@pytest.fixture
def hub(synthetic_gguf: Path) -> Iterator[Hub]:
    with playing() as hub:
        hub.content = synthetic_gguf.read_bytes()
        yield hub


def config(hub: Hub, **more: Any) -> dict[str, Any]:
    settings = {"name": "far", "engine": "llama_cpp", "model": f"{hub.url}/far.gguf", "auto_pull": True, **more}
    return {"backends": [settings], "models": [{"name": "far", "route": ["far"]}]}


def ask(gateway: Gateway) -> httpx.Response:
    body = {"model": "far", "max_tokens": 4, "messages": [{"role": "user", "content": "the road"}]}
    with gateway.http as http:
        return http.post("/v1/chat/completions", json=body, timeout=60)


def test_a_missing_model_is_downloaded_at_the_first_request(hub: Hub, tmp_path: Path) -> None:
    with running(tmp_path, config(hub)) as gateway:
        assert hub.asked == [], "nothing is downloaded at the start"
        assert ask(gateway).status_code == 200
        assert ask(gateway).status_code == 200
        assert len(hub.asked) == 1
    with running(tmp_path, config(hub)) as gateway:
        assert ask(gateway).status_code == 200
    assert len(hub.asked) == 1


def test_who_waits_too_long_is_told_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    with running(tmp_path, config(hub, max_wait_s=1)) as gateway:
        refused = ask(gateway)
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert error["code"] == "backend_unavailable"
        assert f"{hub.url}/far.gguf is being downloaded: 50% of" in error["message"]
        assert refused.headers["retry-after"] == "30"
        with gateway.http as http:
            assert http.get("/admin/backends/far").json()["status"] == "downloading"
        hub.gate.set()
        while (answer := ask(gateway)).status_code == 503:  # bounded by the test's own timeout
            pass
        assert answer.status_code == 200
    assert len(hub.asked) == 1


def test_a_download_that_fails_is_told_and_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.statuses = [(404, {})]
    with running(tmp_path, config(hub)) as gateway:
        refused = ask(gateway)
        assert refused.status_code == 503
        assert "there is no such file" in refused.json()["error"]["message"]
        while (answer := ask(gateway)).status_code == 503:  # it pauses for a second
            pass
        assert answer.status_code == 200


def test_a_gateway_that_stops_does_not_wait_for_a_download(hub: Hub, tmp_path: Path) -> None:
    hub.gate = threading.Event()
    with running(tmp_path, config(hub, max_wait_s=1)) as gateway:
        assert ask(gateway).status_code == 503
    assert (tmp_path / "models" / ".parts" / "far.gguf").stat().st_size > 0
    assert not (tmp_path / "models" / "far.gguf").exists()


def test_the_name_of_another_model_is_not_taken_over(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "far.gguf").write_bytes(b"GGUF, somebody else's")
    with running(tmp_path, config(hub)) as gateway:
        assert ask(gateway).status_code == 200
    assert (tmp_path / "models" / "far.gguf").read_bytes() == b"GGUF, somebody else's"
    assert len(list((tmp_path / "models").glob("far-*.gguf"))) == 1


def test_a_file_that_has_been_removed_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    with running(tmp_path, config(hub)) as gateway:
        assert ask(gateway).status_code == 200
        (tmp_path / "models" / "far.gguf").unlink()
        with gateway.http as http:
            assert http.post("/admin/backends/far", json={"action": "unload"}).status_code == 200
        assert ask(gateway).status_code == 200
    assert len(hub.asked) == 2


def test_a_source_that_has_something_else_is_not_asked_again_and_again(hub: Hub, tmp_path: Path) -> None:
    pinned = config(hub)
    pinned["backends"][0]["model"] += f"#sha256={'0' * 64}"
    with running(tmp_path, pinned) as gateway:
        deadline_s = time.monotonic() + 3  # its pauses begin with one second
        while time.monotonic() < deadline_s:
            refused = ask(gateway)
            assert refused.status_code == 503
            assert "was expected" in refused.json()["error"]["message"]
    assert len(hub.asked) == 1
