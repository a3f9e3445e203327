"""The whole gateway on PostgreSQL, with the server there, away and back; and what is said of one that cannot be used."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from gateway.database import HEAD_REVISION, DatabaseUnusable, migrate, open_database
from tests.gateway.test_cli import QUOTE_ONLY, chasqui
from tests.postgresql import LOCKED, PASSWORD, Postgres, running_postgres
from tests.running import Gateway, running


def config(url: str) -> dict[str, Any]:
    return {
        "store": {"url": url},
        "backends": [{"name": "quote", "engine": "quote"}],
        "models": [{"name": "guide", "route": ["quote"]}],
        "roles": [{"name": "default"}],
    }


def new_home(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def client(gateway: Gateway, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def wait_until(done: Callable[[], bool]) -> float:
    """Seconds that it took; the test's own timeout bounds it."""
    started = time.monotonic()
    while not done():
        pass
    return time.monotonic() - started


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server that may be stopped."""
    with running_postgres() as server:
        yield server


def test_keys_live_their_lives_on_postgresql(own_postgres: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, config(own_postgres.empty_database())) as gateway, gateway.http as http:
        assert http.get("/health/ready").json()["store"] == "ok"
        made = [http.post("/admin/keys", json={"name": f"key {number}"}).json() for number in range(3)]
        with client(gateway, made[0]["key"]) as caller:
            assert caller.get("/v1/models").status_code == 200
            page = http.get("/admin/keys", params={"limit": 2}).json()
            assert (len(page["data"]), page["has_more"]) == (2, True)
            rest = http.get("/admin/keys", params={"limit": 2, "after": page["last_id"]}).json()
            assert {one["id"] for one in page["data"] + rest["data"]} == {one["id"] for one in made}
            changed = {
                "limits": [{"per": "1h", "requests": 5}],
                "metadata": {"a": "ñ\0"},
                "expires_at": 253_402_300_799,
            }
            answer = http.patch(f"/admin/keys/{made[0]['id']}", json=changed).json()
            assert {name: answer[name] for name in changed} == changed
            assert http.delete(f"/admin/keys/{made[0]['id']}").json()["deleted"]
            assert caller.get("/v1/models").status_code == 401
        assert http.get(f"/admin/keys/{made[0]['id']}").status_code == 404
    for file in own_postgres.folder.rglob("*"):
        assert not file.is_file() or made[1]["key"].encode() not in file.read_bytes(), file


@pytest.mark.parametrize("path", ["/admin/keys/%00", "/admin/keys/key_%00", "/admin/keys?after=%00"])
def test_what_postgresql_cannot_hold_is_no_failure_of_it(postgres: Postgres, tmp_path: Path, path: str) -> None:
    with running(tmp_path, config(postgres.migrated_database())) as gateway, gateway.http as http:
        assert http.get(path).status_code == 404


def test_a_second_gateway_sees_a_revoked_key_within_a_second(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.migrated_database()
    with (
        running(new_home(tmp_path, "a"), config(url)) as first,
        running(new_home(tmp_path, "b"), config(url)) as second,
        first.http as http,
    ):
        made = http.post("/admin/keys", json={"name": "both"}).json()
        with client(second, made["key"]) as caller:
            assert wait_until(lambda: caller.get("/v1/models").status_code == 200) < 2
            http.delete(f"/admin/keys/{made['id']}")
            assert wait_until(lambda: caller.get("/v1/models").status_code == 401) < 2


def test_while_the_server_is_away_known_keys_go_on_and_it_is_used_again_when_it_is_back(
    own_postgres: Postgres, tmp_path: Path
) -> None:
    with running(tmp_path, config(own_postgres.migrated_database())) as gateway, gateway.http as http:
        made = http.post("/admin/keys", json={"name": "known"}).json()
        with client(gateway, made["key"]) as caller:
            own_postgres.stop()
            try:
                for _ in range(3):
                    started = time.monotonic()
                    refused = [
                        http.get("/admin/keys"),
                        http.post("/admin/keys", json={"name": "new"}),
                        http.delete(f"/admin/keys/{made['id']}"),
                    ]
                    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [
                        (503, "store_unavailable")
                    ] * 3
                    ready = http.get("/health/ready")
                    assert (ready.status_code, ready.json()["store"]) == (503, "failed")
                    assert caller.get("/v1/models").status_code == 200
                    assert time.monotonic() - started < 5
                assert not gateway.reload(config("sqlite:///unused.db") | {"roles": []})
                assert caller.get("/v1/models").status_code == 200
            finally:
                own_postgres.start()
            wait_until(lambda: http.get("/health/ready").status_code == 200)
            assert [one["name"] for one in http.get("/admin/keys").json()["data"]] == ["known"]
            assert http.patch(f"/admin/keys/{made['id']}", json={"disabled": True}).status_code == 200
            assert caller.get("/v1/models").status_code == 401


def test_a_restart_of_the_server_between_two_requests_is_not_noticed(own_postgres: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, config(own_postgres.migrated_database())) as gateway, gateway.http as http:
        assert http.get("/admin/keys").status_code == 200
        own_postgres.stop()
        own_postgres.start()
        assert http.get("/admin/keys").status_code == 200


def test_two_starts_at_the_same_moment_both_find_the_tables(postgres: Postgres) -> None:
    with ProcessPoolExecutor(2, get_context("spawn")) as starts:
        for _ in range(5):
            url = postgres.empty_database()
            assert list(starts.map(migrate, [url] * 2)) == [None] * 2
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD_REVISION,)]


@pytest.fixture(scope="module")
def locked(postgres: Postgres) -> None:
    postgres.execute(f"CREATE ROLE {LOCKED} LOGIN PASSWORD '{PASSWORD}'")


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://user:{password}@127.0.0.1:1/db", r"@127.0.0.1:1/db cannot .* refused; .* that the server runs"),
        ("postgresql://{locked}:wrong-{password}@/postgres?host={host}", r"authentication failed .*check the user"),
        ("postgresql://{locked}@/postgres?host={host}", r"no password supplied; give one"),
        ("postgresql://postgres:{password}@/nowhere?host={host}", r"does not exist; create it first"),
        (
            "postgresql://{locked}:{password}@/postgres?host={host}",
            r"permission denied.*; GRANT CREATE ON SCHEMA public",
        ),
        ("postgresql://postgres:{password}@/ascii?host={host}", r"has the encoding SQL_ASCII; create one with"),
        ("postgresql://user:{password}@127.0.0.1:1/db?colour=blue", r'invalid connection option "colour"'),
        ("postgresql://user@127.0.0.1:1/db?password={password}", r"refused"),
    ],
    ids=["away", "password", "no password", "no database", "no permission", "encoding", "option", "password as option"],
)
def test_a_server_that_cannot_be_used_is_one_line_without_the_password(
    postgres: Postgres, address: str, words: str
) -> None:
    if "ascii" in address:
        postgres.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    url = address.format(host=postgres.folder, locked=LOCKED, password=PASSWORD)
    with pytest.raises(DatabaseUnusable, match=words) as caught:
        asyncio.run(open_database(url))
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.usefixtures("locked")
def test_no_more_rights_are_needed_than_to_create_in_a_schema(postgres: Postgres) -> None:
    postgres.execute("CREATE DATABASE granted")
    postgres.execute(f"GRANT CREATE ON SCHEMA public TO {LOCKED}", database="granted")
    url = postgres.url("granted", user=LOCKED, password=PASSWORD)
    migrate(url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT to_tsquery('chasqui', 'llamas')").fetchall() == [("'llama'",)]


def test_the_commands_work_on_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(QUOTE_ONLY.format(home=tmp_path) + 'store: {url: "${STORE}"}\n')
    url = postgres.empty_database()
    made = chasqui("keys", "create", "--name", "ñandú", "--config", str(file), STORE=url)
    assert made.stdout.startswith("sk-"), made.stderr
    assert "ñandú" in chasqui("keys", "list", "--config", str(file), STORE=url).stdout
    away = chasqui("keys", "list", "--config", str(file), STORE=f"postgresql://u:{PASSWORD}@127.0.0.1:1/db")
    assert (away.returncode, away.stdout, len(away.stderr.splitlines())) == (1, "", 1)
    assert PASSWORD not in away.stderr
