"""Configuration: all problems at once, each with file, line and the nearest valid name."""

from pathlib import Path

import pytest

from gateway.settings import NOT_BUILT_YET, ConfigInvalid, load
from gateway.settings_schema import GatewaySettings
from tests.house.reference import option_names

GOOD = """
backends:
  - {name: quote, engine: quote}
models:
  - {name: m, route: [quote]}
"""


PROVIDER = """
backends:
  - {{name: up, engine: openai, base_url: "http://127.0.0.1:1/v1", {}}}
models:
  - {{name: m, route: [up]}}
"""

BAD_PROVIDERS = {
    "proxy: 'http://127.0.0.1:99999'": "backends[0].proxy: has a port that cannot be",
    "headers: {content-length: '3'}": "headers: 'content-length' is no header that can be set here",
    'headers: {x-a: "b\\r\\nc: d"}': "headers: the value of 'x-a' holds a line end",
    "headers: {x-a: 'ü'}": "not ASCII",
    "tls: {ca_file: ca.pem}": "`tls` is for https:// addresses",
    "api_key_file: /nowhere/at/all": "api_key_file: the file /nowhere/at/all cannot be read",
    "max_concurrent: 0": "backends[0].max_concurrent: Input should be greater than or equal to 1",
    "paths: ['/v2/x']": "backends[0].paths[0]",
}


def problems(tmp_path: Path, text: str, **environment: str) -> list[str]:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigInvalid) as caught:
        load(file, environment)
    return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]


def test_defaults_fill_what_a_small_file_leaves_out(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD)
    loaded = load(file, {"CHASQUI_HOME": str(tmp_path)})
    assert loaded.settings.server.port == 8000
    assert loaded.settings.store.url == f"sqlite:///{tmp_path}/chasqui.db"
    assert loaded.home == tmp_path


@pytest.mark.parametrize(
    "url", ["sqlite:////var/x.db", "postgresql://u:p@h:5432/db", "postgresql://u@/db?host=/run/postgresql"]
)
def test_a_store_is_a_file_or_a_server(tmp_path: Path, url: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + f'store: {{url: "{url}"}}\n')
    assert load(file, {}).settings.store.url == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgres://u:${PW}@h/db", "must begin with sqlite:/// (a file) or postgresql:// (a server)"),
        ("postgresql+asyncpg://u:${PW}@h/db", "must begin with"),
        ("mysql://u:${PW}@h/db", "must begin with"),
        ("sqlite:///", "names no database"),
        ("postgresql://u:${PW}@h", "names no database"),
        ("postgresql://u:${PW}@h:port/db", "is no address"),
    ],
)
def test_a_store_that_cannot_be_is_refused_without_its_password(tmp_path: Path, url: str, words: str) -> None:
    (problem,) = problems(tmp_path, GOOD + f'store: {{url: "{url}"}}\n', PW="pass-word")
    assert problem.startswith("6: store.url: ")
    assert words in problem
    assert "pass-word" not in problem


def test_a_flag_beats_the_environment_and_that_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + "server: {port: 1111, host: 127.0.0.2}\n")
    assert load(file, {}).settings.server.port == 1111
    assert load(file, {"CHASQUI_PORT": "2222"}).settings.server.port == 2222
    loaded = load(file, {"CHASQUI_PORT": "2222", "CHASQUI_HOST": "127.0.0.3"}, port=0)
    assert (loaded.settings.server.port, loaded.settings.server.host) == (0, "127.0.0.3")


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.yaml"
    file.write_text(GOOD)
    assert load(None, {"CHASQUI_CONFIG": str(file)}).path == file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "serverr: {}\n", "6: serverr: unknown key 'serverr'; did you mean 'server'?"),
        (GOOD + "server: {prot: 1}\n", "6: server.prot: unknown key 'prot'; did you mean 'port'?"),
        (GOOD + "server: {workers: 2}\n", "6: server.workers: Input should be 1"),
        (
            GOOD + "limits: {store: redi://x}\n",
            "6: limits.store: is `memory`, or an address like redis://host:6379/0, rediss://… or unix:///path",
        ),
        (
            GOOD.replace("engine: quote", "engine: quote, stages: 3"),
            "3: backends[0].stages: 'stages' is planned but not built in this version; remove it",
        ),
        (
            GOOD.replace("[quote]", "[qoute]"),
            "5: models[0].route[0]: there is no backend or model 'qoute'; did you mean 'quote'?",
        ),
        (GOOD.replace("[quote]", "[m]"), "5: models[0].route: the route of 'm' leads back to itself: m -> m"),
        (
            GOOD.replace("[quote]", "[quote], strategy: slowest"),
            "5: models[0].strategy: Input should be 'order', 'weighted', 'least_busy' or 'fastest'",
        ),
        (GOOD + "  - {name: m, route: [quote]}\n", "6: models[1].name: 'm' is there twice"),
        (GOOD + "roles: [{name: admin}]\n", "6: roles[0].name: the role 'admin' is built in; choose another name"),
        (
            GOOD + "roles: [{name: r, limits: [{per: 1s, requests: 1}]}]\n",
            "6: roles[0].limits[0].per: is a time like 10s, 5m, 1h or 30d, between 10s and 30d, or one of hour, day, week, month",
        ),
        (
            GOOD + "roles: [{name: r, limits: [{per: 1h, requests: 1, tokens: 1}]}]\n",
            "6: roles[0].limits[0]: names exactly one of requests, tokens, cost_usd, compute_s, concurrent",
        ),
        (
            GOOD + "keys: [{name: k, key_env: NOPE, role: admin}]\n",
            "6: keys[0].key_env: the environment variable NOPE is not set",
        ),
        (GOOD + 'home: "${NOPE}"\n', "6: home: the environment variable NOPE is not set"),
        (
            GOOD + "collections: [{name: c, embed: quot, paths: [x]}]\n",
            "6: collections[0].embed: there is no backend 'quot'; did you mean 'quote'?",
        ),
        (
            GOOD.replace("[quote]", "[{backend: quote, model: 'x-*'}]"),
            "5: models[0].route[0].model: `*` stands for nothing: 'm' has none",
        ),
        (GOOD + "home: a\nhome: b\n", "7: not valid YAML: 'home' is given twice"),
        ("a: [\n", "2: not valid YAML: expected the node content, but found '<stream end>'"),
        ("- 1\n", " must be a mapping with server, backends, models …"),
    ],
)
def test_each_problem_has_its_line_and_words(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


@pytest.mark.parametrize(("more", "expected"), BAD_PROVIDERS.items())
def test_what_a_provider_cannot_be_told_is_found_at_start(tmp_path: Path, more: str, expected: str) -> None:
    assert expected in "\n".join(problems(tmp_path, PROVIDER.format(more)))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "server: {port: x, prot: 1}\nbackends: []\nmodels: 5\nnonsense: 1\n")) == 5


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load(tmp_path / "none.yaml", {})


def test_a_short_admin_key_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD, CHASQUI_ADMIN_KEY="short") == [
        "CHASQUI_ADMIN_KEY is shorter than 16 characters; choose a longer one"
    ]


def test_nothing_is_called_unbuilt_that_is_built() -> None:
    assert NOT_BUILT_YET & option_names(GatewaySettings) == set()
