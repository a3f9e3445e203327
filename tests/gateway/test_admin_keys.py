"""Keys and roles over /admin/keys: who may do what, from the next request on."""

import time

import httpx
import openai
import pytest

from tests.running import Gateway, running

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_key_is_shown_once_and_works_from_then_on(gateway: Gateway) -> None:
    with gateway.http as http:
        made = http.post("/admin/keys", json={"name": "anna", "metadata": {"team": "a"}}).json()
        read = http.get(f"/admin/keys/{made['id']}").json()
        listed = http.get("/admin/keys").json()["data"]
    assert made["key"].startswith("sk-")
    assert not made["id"].startswith("sk-")
    assert read == {name: value for name, value in made.items() if name != "key"}
    assert listed[0]["id"] == made["id"]
    assert made["key"] not in str(listed)
    with gateway.sdk(made["key"]) as client:
        assert client.models.list().data


def test_the_secret_is_nowhere_on_the_disk(gateway: Gateway) -> None:
    secret = gateway.new_key(name="hidden").encode()
    for file in gateway.home.rglob("*"):
        if file.is_file() and file.suffix != ".gguf":
            assert secret not in file.read_bytes(), file


def test_a_disabled_key_ends_with_the_next_request_and_can_come_back(gateway: Gateway) -> None:
    with gateway.http as http:
        made = http.post("/admin/keys", json={"name": "b"}).json()
        with gateway.sdk(made["key"]) as client:
            client.models.list()
            assert http.patch(f"/admin/keys/{made['id']}", json={"disabled": True}).json()["disabled"]
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
            http.patch(f"/admin/keys/{made['id']}", json={"disabled": False})
            client.models.list()
            assert http.delete(f"/admin/keys/{made['id']}").json()["deleted"]
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        assert http.get(f"/admin/keys/{made['id']}").status_code == 404


def test_a_rotated_key_has_a_new_secret_and_the_old_one_ends(gateway: Gateway) -> None:
    with gateway.http as http:
        made = http.post("/admin/keys", json={"name": "c"}).json()
        rotated = http.post(f"/admin/keys/{made['id']}/rotate").json()
    assert rotated["id"] == made["id"]
    with gateway.sdk(rotated["key"]) as client:
        client.models.list()
    with gateway.sdk(made["key"]) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_an_expired_key_is_an_unknown_key(gateway: Gateway) -> None:
    past, future = int(time.time()) - 1, int(time.time()) + 3600
    with gateway.sdk(gateway.new_key(expires_at=future)) as client:
        client.models.list()
    with gateway.sdk(gateway.new_key(expires_at=past)) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_key_narrows_its_role(gateway: Gateway) -> None:
    with gateway.sdk(gateway.new_key(models=["text-*", "minilm"])) as client:
        assert {model.id for model in client.models.list()} == {"text-embedding-3-small", "minilm"}
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model="guide", messages=HELLO)
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="no-such", messages=HELLO)
    assert refused.value.body["message"] == unknown.value.body["message"].replace("no-such", "guide")


def test_a_collection_that_a_role_may_not_read_does_not_exist_for_it(gateway: Gateway) -> None:
    with gateway.sdk(gateway.new_key(role="no-documents")) as client, pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="handbook", messages=HELLO)


def test_paths_outside_a_role_are_404_and_under_admin_403(gateway: Gateway) -> None:
    with httpx.Client(
        base_url=gateway.url, headers={"authorization": f"Bearer {gateway.new_key(role='embeddings-only')}"}
    ) as http:
        assert http.post("/v1/embeddings", json={"model": "minilm", "input": "x"}).status_code == 200
        hidden = http.post("/v1/chat/completions", json={"model": "guide", "messages": HELLO})
        forbidden = http.get("/admin/keys")
    assert (hidden.status_code, hidden.json()["error"]["code"]) == (404, "not_found")
    assert (forbidden.status_code, forbidden.json()["error"]["code"]) == (403, "permission_denied")


def test_a_role_may_be_given_the_administration_of_keys(gateway: Gateway) -> None:
    with httpx.Client(
        base_url=gateway.url, headers={"authorization": f"Bearer {gateway.new_key(role='key-keeper')}"}
    ) as http:
        assert http.get("/admin/keys").status_code == 200
        assert http.get("/v1/models").status_code == 404


def test_lists_are_pages_newest_first(gateway: Gateway) -> None:
    for index in range(3):
        gateway.new_key(name=f"page {index}")
    with gateway.http as http:
        everything = [key["id"] for key in http.get("/admin/keys", params={"limit": 1000}).json()["data"]]
        seen: list[str] = []
        after: str | None = None
        while True:
            params = {"limit": 2} | ({"after": after} if after else {})
            page = http.get("/admin/keys", params=params).json()
            seen += [key["id"] for key in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
    assert seen == everything


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "role": "no-such"}, "role"),
        ({"name": "x", "limits": [{"per": "5s", "requests": 1}]}, "limits.0.per"),
        ({"name": "x", "limits": [{"requests": 1}]}, "limits.0"),
        ({"name": "x", "limits": [{"per": "1h", "cost_usd": -1}]}, "limits.0.cost_usd"),
        ({"name": "x", "models": "guide"}, "models"),
        ({"name": "x", "log_content": "yes"}, "log_content"),
        ({"name": "x", "expires_at": 2**63}, "expires_at"),
        ({"name": "x", "expires_at": -5}, "expires_at"),
        ({"name": "a\n\x1b[31m"}, "name"),
        ({"name": "x", "metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ],
)
def test_bad_fields_of_a_key(gateway: Gateway, body: dict[str, object], param: str | None) -> None:
    with gateway.http as http:
        answer = http.post("/admin/keys", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x"])
def test_a_limit_outside_its_range_is_refused(gateway: Gateway, query: str) -> None:
    with gateway.http as http:
        assert http.get(f"/admin/keys?{query}").status_code == 400


def test_a_change_made_by_another_process_is_in_force_within_a_second(gateway: Gateway) -> None:
    """Two gateways on one database: what one disables, the other refuses."""
    config = {
        "store": {"url": f"sqlite:///{gateway.home}/chasqui.db"},
        "backends": [{"name": "quote", "engine": "quote"}],
        "models": [{"name": "guide", "route": ["quote"]}],
        "roles": [{"name": "default"}],
    }
    other_home = gateway.home / "other"
    other_home.mkdir()
    with running(other_home, config) as other, gateway.http as http:
        made = http.post("/admin/keys", json={"name": "both"}).json()
        with httpx.Client(base_url=other.url, headers={"authorization": f"Bearer {made['key']}"}) as client:
            assert answers(client, 200) < 3
            http.patch(f"/admin/keys/{made['id']}", json={"disabled": True})
            assert answers(client, 401) < 3


def answers(client: httpx.Client, status: int) -> float:
    """Seconds until it answers with this status; the test's own timeout bounds it."""
    started = time.monotonic()
    while client.get("/v1/models").status_code != status:
        pass
    return time.monotonic() - started


def test_a_key_may_be_made_disabled(gateway: Gateway) -> None:
    with gateway.sdk(gateway.new_key(disabled=True)) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
