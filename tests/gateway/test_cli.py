"""The command line as a person meets it: a process of its own, words instead of tracebacks."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT

QUOTE_ONLY = """
home: "{home}"
backends: [{{name: quote, engine: quote}}]
models: [{{name: guide, route: [quote]}}]
roles: [{{name: default}}]
"""


def chasqui(*arguments: str, text: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        input=text,
        timeout=60,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "chasqui.yaml"
    file.write_text(QUOTE_ONLY.format(home=tmp_path / "home"))
    return file


@contextmanager
def serving(config: Path, *arguments: str, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process and everything it printed up to being ready."""
    command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config), "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    printed = ""
    try:
        while "is ready on" not in printed:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            printed += line
        yield process, printed
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_help_lists_the_commands() -> None:
    printed = chasqui("--help").stdout
    for command in ("serve", "check", "keys", "models", "worker", "chat"):
        assert command in printed


def test_the_first_start_prints_the_admin_key_once_and_a_curl_line_that_works(config: Path) -> None:
    with serving(config) as (process, printed):
        key = re.search(r"^\s+(sk-\S+)$", printed, re.MULTILINE)
        curl = re.search(r"^\s+(curl .*)$", printed, re.MULTILINE)
        assert key
        assert curl
        answer = subprocess.run(["sh", "-c", curl[1]], capture_output=True, text=True, timeout=30, check=True).stdout
        assert '"error"' in answer  # `quote` without documents says so; with the shipped configuration it is an answer
        assert "only quotes documents" in answer
    assert process.returncode == 0
    with serving(config) as (_, printed):
        assert "sk-" not in printed


def test_the_curl_line_asks_for_something_that_is_there(config: Path) -> None:
    from gateway.cli.serve import curl_line
    from gateway.settings import load

    assert '"model": "guide"' in curl_line("http://host", "sk-1", load(config))
    config.write_text(config.read_text().replace("guide", "other"))
    assert (
        curl_line("http://host", "sk-1", load(config)) == "curl http://host/v1/models -H 'Authorization: Bearer sk-1'"
    )


def test_an_admin_key_from_the_environment_is_not_printed(config: Path) -> None:
    with serving(config, CHASQUI_ADMIN_KEY="sk-from-the-environment") as (_, printed):
        assert "sk-" not in printed
        url = re.search(r"http://[\d.:]+", printed)
        assert url
        answer = httpx.get(f"{url[0]}/admin/keys", headers={"authorization": "Bearer sk-from-the-environment"})
        assert answer.status_code == 200


def test_a_configured_admin_is_enough(config: Path) -> None:
    config.write_text(config.read_text() + "keys: [{name: root, key_env: ROOT_KEY, role: admin}]\n")
    with serving(config, ROOT_KEY="sk-root-0123456789abcdef") as (_, printed):
        assert "sk-" not in printed


def test_keys_made_on_the_command_line_work_at_a_running_gateway(config: Path) -> None:
    with serving(config) as (_, printed):
        url = re.search(r"http://[\d.:]+", printed)
        assert url
        made = chasqui("keys", "create", "--name", "cli", "--config", str(config))
        key, key_id = made.stdout.strip(), made.stderr.split()[0]
        headers = {"authorization": f"Bearer {key}"}
        while httpx.get(f"{url[0]}/v1/models", headers=headers).status_code != 200:
            pass
        assert key_id in chasqui("keys", "list", "--config", str(config)).stdout
        assert "disabled" in chasqui("keys", "disable", key_id, "--config", str(config)).stdout
        while httpx.get(f"{url[0]}/v1/models", headers=headers).status_code != 401:
            pass


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "disable", "key_none"),
        ("keys", "create", "--name", "x", "--role", "none"),
        ("keys", "rotate", "key_none"),
    ],
)
def test_a_key_or_role_that_does_not_exist_is_one_line(config: Path, arguments: tuple[str, ...]) -> None:
    result = chasqui(*arguments, "--config", str(config))
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "there is no" in result.stderr


def test_a_port_in_use_is_one_line(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = chasqui("serve", "--config", str(config), "--port", str(port))
    assert result.returncode == 1
    assert (
        result.stderr.strip()
        == f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port, or stop what uses it"
    )


def test_a_missing_model_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        QUOTE_ONLY.format(home=tmp_path).replace("engine: quote", "engine: llama_cpp, model: models/none.gguf")
    )
    for arguments in (("check",), ("serve", "--port", "0")):
        result = chasqui(*arguments, "--config", str(file))
        assert result.returncode == 1
        assert "models/none.gguf is missing" in result.stderr
        assert str(tmp_path / "models" / "none.gguf") in result.stderr
        assert "Traceback" not in result.stderr


def test_an_unusable_database_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    (tmp_path / "broken.db").write_bytes(b"this is not a database, it is a text of some length" * 50)
    file.write_text(QUOTE_ONLY.format(home=tmp_path) + f'store: {{url: "sqlite:///{tmp_path}/broken.db"}}\n')
    result = chasqui("serve", "--config", str(file), "--port", "0")
    assert result.returncode == 1
    assert "the database" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_says_everything_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("backends: [{name: a, engine: x}]\nmodels: [{name: b, route: [c]}]\nnonsense: 1\n")
    result = chasqui("check", "--config", str(file))
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 2
    assert f"{file}:3: nonsense: unknown key 'nonsense'" in result.stderr


def test_check_prints_a_schema_for_editors() -> None:
    assert '"backends"' in chasqui("check", "--schema").stdout


def test_models_list_shows_where_each_name_leads() -> None:
    printed = chasqui("models", "list").stdout
    assert "handbook" in printed
    assert "quote" in printed


def test_chat_streams_an_answer_and_says_what_is_wrong(config: Path) -> None:
    environment = {"OPENAI_API_KEY": "", "CHASQUI_API_KEY": ""}
    assert "no key" in chasqui("chat", "hello", **environment).stderr
    nobody = chasqui("chat", "hello", "--base-url", "http://127.0.0.1:1/v1", "--key", "sk-x")
    assert "nothing answers at" in nobody.stderr
    assert nobody.returncode == 1


def test_a_worker_on_tcp_refuses_to_start_without_a_key(synthetic_gguf: Path) -> None:
    result = chasqui("worker", "--model", str(synthetic_gguf), "--port", "0", "--key-env", "NO_SUCH_VARIABLE")
    assert result.returncode == 1
    assert "NO_SUCH_VARIABLE" in result.stderr


def test_two_starts_on_one_port_at_the_same_moment_leave_one(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config), "--port", str(port)]
    starts = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    while all(start.poll() is None for start in starts):
        pass
    loser, winner = sorted(starts, key=lambda start: start.poll() is None)
    assert loser.returncode == 1
    assert "cannot listen" in loser.communicate(timeout=20)[1]
    winner.send_signal(signal.SIGINT)
    winner.communicate(timeout=20)


def test_an_admin_key_is_made_only_by_a_start_that_succeeds(config: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "journal").write_text("in the way")
    failed = chasqui("serve", "--config", str(config), "--port", "0")
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) == 1
    (tmp_path / "home" / "journal").unlink()
    with serving(config) as (_, printed):
        assert "The admin key, shown this once" in printed


def test_a_configuration_that_contains_itself_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &x [*x]\n")
    result = chasqui("check", "--config", str(file))
    assert (result.returncode, len(result.stderr.strip().splitlines())) == (1, 1)


def test_a_port_that_is_no_number_is_blamed_on_its_variable(config: Path) -> None:
    assert "CHASQUI_PORT is 'abc'" in chasqui("check", "--config", str(config), CHASQUI_PORT="abc").stderr


def test_a_key_is_created_and_changed_with_all_that_it_may_have(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(QUOTE_ONLY.format(home=tmp_path))
    wanted = ["--limit", "requests=1000/1h@gpt-4*", "--limit", "cost_usd=2.5/month", "--limit", "concurrent=4"]
    made = chasqui(
        "keys",
        "create",
        "--name",
        "all",
        *wanted,
        "--model",
        "gpt-*",
        "--path",
        "/v1/*",
        "--log-content",
        "on",
        "--config",
        str(file),
    )
    key_id = made.stderr.split()[0]
    changed = chasqui(
        "keys",
        "update",
        key_id,
        "--name",
        "some",
        "--limit",
        "tokens=5/1d",
        "--model",
        "llama",
        "--model",
        "quote",
        "--config",
        str(file),
    )
    assert changed.returncode == 0, changed.stderr
    with sqlite3.connect(tmp_path / "chasqui.db") as database:
        name, limits, narrowed, kept = database.execute(
            "SELECT name, limits, narrowed, log_content FROM keys"
        ).fetchone()
        trail = database.execute("SELECT actor, action, details FROM audit ORDER BY at").fetchall()
    database.close()
    assert (name, kept) == ("some", 1)
    assert json.loads(limits) == [{"per": "1d", "tokens": 5}]
    assert json.loads(narrowed) == {"models": ["llama", "quote"], "paths": ["/v1/*"]}
    assert [(actor, action) for actor, action, _ in trail] == [("cli", "key.create"), ("cli", "key.update")]
    assert json.loads(trail[0][2])["limits"] == [
        {"per": "1h", "requests": 1000, "model": "gpt-4*"},
        {"per": "month", "cost_usd": 2.5},
        {"concurrent": 4},
    ]
    assert made.stdout.strip() not in str(trail)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lots", "write it like requests=1000/1h"),
        ("requests=5", "need `per`"),
        ("requests=5/1y", "10s, 5m, 1h or 30d"),
        ("wishes=5/1h", "wishes: Extra inputs"),
        ("concurrent=2/1h", "concurrent has none"),
    ],
)
def test_a_limit_that_cannot_be_is_told_in_one_line(tmp_path: Path, words: str, told: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(QUOTE_ONLY.format(home=tmp_path))
    made = chasqui("keys", "create", "--name", "x", "--limit", words, "--config", str(file))
    assert (made.returncode, made.stdout) == (2, "")
    assert told in made.stderr
