"""Who gets in where: /admin on its own address, unknown keys from one address, and keys that may not make themselves more."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import ADMIN_KEY, Gateway, running

CONFIG = {"backends": [{"name": "quote", "engine": "quote"}], "models": [{"name": "guide", "route": ["quote"]}]}

ROLES = [
    {"name": "default"},
    {"name": "keeper", "paths": ["/admin/keys*", "/v1/*"]},
    {"name": "sneaky", "paths": ["/[a]dmin/*"]},
    {"name": "all", "paths": ["*"]},
    {"name": "slashes", "paths": ["//*"]},
]


def client(url: str, key: str = ADMIN_KEY) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Gateway]:
    with running(tmp_path, CONFIG | {"server": {"admin": {"port": 0}}}) as gateway:
        yield gateway


def test_with_an_address_of_its_own_admin_is_there_and_nowhere_else(two: Gateway) -> None:
    with client(two.admin_url) as admin, client(two.url) as public:
        made = admin.post("/admin/keys", json={"name": "x"})
        assert made.status_code == 201
        for path in (
            "/admin/keys",
            "/admin",
            "/admin/",
            "/admin/requests?limit=1",
            "/%61dmin/keys",
            "//admin/keys",
            "/%2fadmin/keys",
        ):
            refused = public.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found"), path
            assert refused.headers["x-request-id"].startswith("req_")
        assert public.get("/v1/models").status_code == 200
        assert admin.get("/v1/models").status_code == 404
        assert admin.post("/v1/chat/completions", json={}).status_code == 404
        for path in ("/health", "/health/ready", "/metrics", "/schema/openapi.json"):
            assert (admin.get(path).status_code, public.get(path).status_code) == (200, 200), path


def test_the_host_that_a_client_claims_to_ask_opens_nothing(two: Gateway) -> None:
    host = two.admin_url.removeprefix("http://")
    with client(two.url) as public:
        assert public.get("/admin/keys", headers={"host": host}).status_code == 404
        assert (
            public.get("/admin/keys", headers={"x-forwarded-host": host, "forwarded": f"host={host}"}).status_code
            == 404
        )
    name, port = two.url.removeprefix("http://").split(":")
    with socket.create_connection((name, int(port))) as line:
        line.sendall(
            f"GET http://{host}/admin/keys HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {ADMIN_KEY}\r\n\r\n".encode()
        )
        assert b" 404 " in line.recv(1000).split(b"\r\n")[0]


def test_too_many_unknown_keys_from_an_address_are_told_to_wait(tmp_path: Path) -> None:
    with running(tmp_path, CONFIG | {"server": {"failed_keys_per_minute": 5}}) as gateway:
        key, unused = gateway.new_key(), gateway.new_key()
        with client(gateway.url, key) as http:
            assert http.get("/v1/models").status_code == 200
        for number in range(5):
            with client(gateway.url, f"sk-guess-{number}") as http:
                assert http.post("/v1/chat/completions", json={}).status_code == 401
        for guess in ("sk-guess", unused):
            for ask in ("/v1/models", "/admin/keys"):
                with client(gateway.url, guess) as http:
                    refused = http.get(ask)
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
                assert 1 <= int(refused.headers["retry-after"]) <= 60
        with client(gateway.url, key) as http:
            assert http.get("/v1/models").status_code == 200
            assert http.get("/health").status_code == 200
        with gateway.http as http:
            assert "chasqui_addresses_throttled_total 1.0" in http.get("/metrics").text


def test_whoever_keeps_keys_cannot_make_administrators(tmp_path: Path) -> None:
    with running(tmp_path, CONFIG | {"roles": ROLES}) as gateway:
        with gateway.http as http:
            admin_key = http.post("/admin/keys", json={"name": "boss", "role": "admin"}).json()["id"]
        with client(gateway.url, gateway.new_key(role="keeper")) as keeper:
            made = keeper.post("/admin/keys", json={"name": "plain"})
            assert made.status_code == 201
            plain = made.json()["id"]
            assert keeper.patch(f"/admin/keys/{plain}", json={"disabled": True}).status_code == 200
            for role in ("admin", "keeper", "sneaky", "all", "slashes"):
                answers = [
                    keeper.post("/admin/keys", json={"name": "x", "role": role}),
                    keeper.patch(f"/admin/keys/{plain}", json={"role": role}),
                ]
                assert [one.status_code for one in answers] == [403, 403], role
            for change in (
                keeper.patch(f"/admin/keys/{admin_key}", json={"name": "mine"}),
                keeper.post(f"/admin/keys/{admin_key}/rotate"),
                keeper.delete(f"/admin/keys/{admin_key}"),
            ):
                assert (change.status_code, change.json()["error"]["code"]) == (403, "permission_denied")
            assert keeper.delete(f"/admin/keys/{plain}").status_code == 200
        with gateway.http as http:
            assert http.patch(f"/admin/keys/{admin_key}", json={"name": "still"}).status_code == 200


def test_an_administrator_with_few_paths_cannot_make_one_with_all(tmp_path: Path) -> None:
    with running(tmp_path, CONFIG | {"roles": ROLES}) as gateway:
        with gateway.http as http:
            narrow = http.post("/admin/keys", json={"name": "n", "role": "admin", "paths": ["/admin/keys*"]}).json()
        with client(gateway.url, narrow["key"]) as http:
            assert http.post("/admin/keys", json={"name": "x", "role": "admin"}).status_code == 403
            assert http.patch(f"/admin/keys/{narrow['id']}", json={"paths": None}).status_code == 403
            assert http.post("/admin/keys", json={"name": "x"}).status_code == 201


def test_a_key_of_a_role_that_went_is_not_rotated_by_just_anybody(tmp_path: Path) -> None:
    """The role may come back, and with it what it could do."""
    with running(tmp_path, CONFIG | {"roles": [*ROLES, {"name": "ops", "paths": ["/admin/*"]}]}) as gateway:
        with gateway.http as http:
            ops = http.post("/admin/keys", json={"name": "o", "role": "ops"}).json()["id"]
        keeper = gateway.new_key(role="keeper")
        assert gateway.reload(CONFIG | {"roles": ROLES})
        with client(gateway.url, keeper) as http:
            assert http.post(f"/admin/keys/{ops}/rotate").status_code == 403
        with gateway.http as http:
            assert http.post(f"/admin/keys/{ops}/rotate").status_code == 200
            trail = http.get("/admin/audit").json()["data"]
        assert "config.reload" in {one["action"] for one in trail}


@pytest.mark.parametrize(
    "question",
    ["requests?status=99999999999999999999", "requests?status=-1", "usage?since=1e400", "requests?limit=1001"],
)
def test_a_question_that_cannot_be_is_a_400(two: Gateway, question: str) -> None:
    with client(two.admin_url) as http:
        answer = http.get(f"/admin/{question}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        for path in ("requests?key=%00", "usage?tag=%00", "audit?object_id=%00", "requests?after=%00"):
            assert http.get(f"/admin/{path}").json()["data"] == []
        assert http.get("/admin/requests/%00").status_code == 404
