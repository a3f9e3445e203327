"""`chasqui models` as a person meets it. What is downloaded comes from a server on loopback that plays the hub."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import yaml
from click.testing import CliRunner, Result

from gateway.cli import cli
from gateway.cli.models.adding import name_of
from gateway.cli.models.suggesting import example, suggestions
from tests.backends.llamacpp.test_checkpoint import write as write_checkpoint
from tests.backends.pulling.hub import Hub, playing
from tests.conftest import ROOT

CONFIG = """# ours
home: "{home}"
backends:
  - {{name: quote, engine: quote}}   # no model
# what clients ask for
models:
  - {{name: quotes, route: [quote]}}
"""


@pytest.fixture
def hub(synthetic_gguf: Path) -> Iterator[Hub]:
    with playing() as hub:
        hub.content = synthetic_gguf.read_bytes()
        yield hub


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "chasqui.yaml"
    file.write_text(CONFIG.format(home=tmp_path / "home"))
    return file


def models(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["models", *arguments, "--config", str(config)])


def files(config: Path) -> dict[str, dict[str, object]]:
    told = json.loads(models(config, "list", "--json").output)
    return {file["file"]: file for file in told["files"]}


def test_from_the_hub_to_a_model_that_clients_may_ask_for(hub: Hub, config: Path) -> None:
    """A process of its own: `HF_ENDPOINT` and `HF_TOKEN` are read by the hub's own library, when that is loaded."""
    hub.token, hub.redirects = "hf_0123456789abcdef", ""
    command = [
        sys.executable,
        "-m",
        "gateway.cli",
        "models",
        "pull",
        "hf://owner/repo/Tiny-1B-Q4_K_M.gguf",
        "--config",
        str(config),
    ]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(config.parent)}
    pulled = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert pulled.returncode == 0, pulled.stderr
    assert "chasqui models add Tiny-1B-Q4_K_M.gguf" in pulled.stdout
    assert "Tiny-1B-Q4_K_M.gguf: 100% of" in pulled.stderr
    assert hub.token not in pulled.stdout + pulled.stderr

    added = models(config, "add", "Tiny-1B-Q4_K_M.gguf")
    assert added.exit_code == 0, added.output
    after = yaml.safe_load(config.read_text())
    backend = after["backends"][1]
    assert backend == {"name": "tiny-1b", "engine": "llama_cpp", "model": "models/Tiny-1B-Q4_K_M.gguf", **backend}
    assert (backend["context_tokens"], backend["slots"], backend["threads"]) == (16384, 4, "auto")
    assert after["models"][1] == {"name": "tiny-1b", "route": ["tiny-1b"]}
    assert "# what clients ask for\nmodels:" in config.read_text()
    assert CliRunner().invoke(cli, ["check", "--config", str(config)]).exit_code == 0

    listed = files(config)["Tiny-1B-Q4_K_M.gguf"]
    assert listed["backends"] == ["tiny-1b"]
    assert listed["source"] == "hf://owner/repo/Tiny-1B-Q4_K_M.gguf"
    assert "tiny-1b" in models(config, "list").output


def test_what_is_used_is_not_removed_by_mistake(hub: Hub, config: Path) -> None:
    assert models(config, "pull", f"{hub.url}/m.gguf", "--name", "mine").exit_code == 0
    assert models(config, "add", "mine").exit_code == 0
    refused = models(config, "remove", "mine")
    assert refused.exit_code == 1
    assert "used by mine" in refused.output
    assert models(config, "remove", "mine", "--force").exit_code == 0
    assert files(config) == {}
    assert "there is no mine.gguf" in models(config, "remove", "mine").output
    assert "no name for a model file" in models(config, "remove", "../chasqui").output


def test_a_file_that_has_changed_is_found(hub: Hub, config: Path) -> None:
    models(config, "pull", f"{hub.url}/m.gguf")
    models(config, "pull", f"{hub.url}/n.gguf")
    good = models(config, "verify")
    assert good.exit_code == 0
    assert f"m.gguf: as it came from {hub.url}/m.gguf" in good.output
    path = config.parent / "home" / "models" / "m.gguf"
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    bad = models(config, "verify")
    assert bad.exit_code == 1
    assert "m.gguf: CHANGED since" in bad.output
    assert "n.gguf: as it came" in bad.output
    path.write_bytes(b"x")
    assert "m.gguf: BROKEN" in models(config, "verify", "m").output
    (path.parent / "own.gguf").write_bytes(hub.content)
    assert "nothing to compare it to" in models(config, "verify", "own").output


def test_a_pull_that_fails_ends_with_words(hub: Hub, config: Path) -> None:
    for source, words in (
        (f"{hub.url}/gone.gguf", "no such file"),
        ("gone.gguf", "there is no file"),
        ("ftp://x/m.gguf", "not known"),
    ):
        result = models(config, "pull", source)
        assert result.exit_code == 1
        assert words in result.output
        assert "Traceback" not in result.output


def test_a_bar_is_drawn_in_a_terminal(hub: Hub, config: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "models", "pull", f"{hub.url}/m.gguf", "--config", str(config)]
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"TERM": "xterm"}, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            shown += data
        os.close(ours)
    assert process.returncode == 0
    assert "━".encode() in shown


@pytest.mark.parametrize(
    ("before", "words"),
    [("backends: {}", "cannot take it by itself"), ("backends: [", "chasqui.yaml")],
)
def test_a_configuration_that_cannot_take_it_stays_as_it_is(hub: Hub, config: Path, before: str, words: str) -> None:
    models(config, "pull", f"{hub.url}/m.gguf")
    shown = models(config, "add", "m", "--dry-run")
    assert "- {name: m, route: [m]}" in shown.output
    text = config.read_text()
    assert CONFIG.format(home=config.parent / "home") == text
    config.write_text(text.replace("backends:\n  - {name: quote, engine: quote}   # no model", before))
    broken = config.read_text()
    result = models(config, "add", "m")
    assert result.exit_code == 1
    assert config.read_text() == broken
    assert [file.name for file in config.parent.iterdir() if "draft" in file.name] == []


def test_a_name_that_is_taken_is_not_written_twice(hub: Hub, config: Path) -> None:
    models(config, "pull", f"{hub.url}/m.gguf")
    result = models(config, "add", "m", "--name", "quote")
    assert result.exit_code == 1
    assert "has a 'quote' already" in result.output
    assert "there is no model file other" in models(config, "add", "other").output


def test_a_source_in_the_configuration_is_checked(hub: Hub, config: Path) -> None:
    source = f"{hub.url}/m.gguf"
    entry = f"  - {{name: far, engine: llama_cpp, model: '{source}'}}\n# what"
    config.write_text(config.read_text().replace("# what", entry))
    check = ["check", "--config", str(config)]
    assert "chasqui models pull" in CliRunner().invoke(cli, check).output
    models(config, "pull", source, "--name", "another-name")
    assert CliRunner().invoke(cli, check).exit_code == 0
    assert "far" in files(config)["another-name.gguf"]["backends"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "qwen3-4b"), ("nomic-embed-text-v1.5.Q8_0.gguf", "nomic-embed-text-v1.5"), ("m.gguf", "m"),
        ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b"), ("Big-IQ2_XXS-00001-of-00003.gguf", "big"), ("a-f16.gguf", "a"),
    ],
)  # fmt: skip
def test_names_are_made_from_files(file: str, name: str) -> None:
    assert name_of(Path(file)) == name


def test_suggestions_fit_the_machine_and_name_size_and_licence() -> None:
    shown = CliRunner().invoke(cli, ["models", "suggest", "--json"])
    assert shown.exit_code == 0
    fitting = json.loads(shown.output)
    every = json.loads(CliRunner().invoke(cli, ["models", "suggest", "--all", "--json"]).output)
    assert all(one["fits"] for one in fitting)
    assert [one for one in every if one["fits"]] == fitting
    assert {one.serves for one in suggestions()} == {"chat", "embeddings", "rerank"}
    from backends.pulling.source import parse_source

    for one in suggestions():
        assert parse_source(one.source).shown == one.source
        assert one.licence
    table = CliRunner().invoke(cli, ["models", "suggest"], env={"COLUMNS": "200"})
    assert "chasqui models pull hf://" in table.output


def test_a_checkpoint_becomes_a_model(tmp_path: Path, config: Path) -> None:
    folder = write_checkpoint(tmp_path / "my-bert")
    made = models(config, "convert", str(folder), "--type", "f16")
    assert made.exit_code == 0, made.output
    assert "already" in models(config, "convert", str(folder)).output
    assert models(config, "convert", str(folder), "--replace").exit_code == 0
    assert models(config, "add", "my-bert").exit_code == 0
    assert yaml.safe_load(config.read_text())["backends"][1]["serves"] == "embeddings"
    refused = models(config, "convert", str(tmp_path))
    assert refused.exit_code == 1
    assert "Traceback" not in refused.output
    assert sorted(path.name for path in (tmp_path / "home" / "models").iterdir()) == ["my-bert.gguf"]


def test_a_configuration_keeps_its_link_and_its_ends_of_lines(hub: Hub, config: Path) -> None:
    assert models(config, "pull", f"{hub.url}/tiny.gguf").exit_code == 0
    real = config.with_name("real.yaml")
    real.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    config.unlink()
    config.symlink_to(real.name)
    added = models(config, "add", "tiny")
    assert added.exit_code == 0, added.output
    assert config.is_symlink()
    after = real.read_bytes()
    assert after.count(b"\n") == after.count(b"\r\n")
    assert "tiny" in [one["name"] for one in yaml.safe_load(after)["models"]]
    assert sorted(path.name for path in config.parent.glob(".*")) == []


def test_what_a_file_says_of_itself_is_shown_and_not_obeyed(config: Path) -> None:
    shelf = config.parent / "home" / "models"
    shelf.mkdir(parents=True)
    writer = gguf.GGUFWriter(shelf / "evil.gguf", "x[/b]\x1b[2J")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    listed = models(config, "list")
    assert listed.exit_code == 0, listed.output
    assert "x[/b][2J" in listed.output and "\x1b" not in listed.output


def test_names_are_not_cut_where_no_terminal_reads(hub: Hub, config: Path) -> None:
    name = f"a-model-of-{'very-' * 12}long-name.gguf"
    assert models(config, "pull", f"{hub.url}/{name}").exit_code == 0
    assert name in models(config, "list").output
    source = suggestions()[0].source
    assert source in CliRunner().invoke(cli, ["models", "suggest", "--all"]).output


@pytest.mark.parametrize("name", ["", "a: b", "\u00e9", "-a"])
def test_a_name_that_no_model_can_have_is_said(hub: Hub, config: Path, name: str) -> None:
    assert models(config, "pull", f"{hub.url}/tiny.gguf").exit_code == 0
    before = config.read_bytes()
    refused = models(config, "add", "tiny", f"--name={name}")
    assert (refused.exit_code, config.read_bytes()) == (1, before)
    assert "is no name for a model" in refused.output


def test_a_file_that_is_not_there_is_not_called_broken(config: Path) -> None:
    refused = models(config, "verify", "nothing")
    assert refused.exit_code == 1
    assert "there is no nothing.gguf" in refused.output


def test_the_example_is_one_that_this_machine_runs_well() -> None:
    from backends.machine import Machine

    plain = Machine(memory_bytes=64 << 30, available_bytes=60 << 30, card_bytes=0, computes_on_cards=False)
    best = example([one for one in suggestions() if one.fits(plain)], plain)
    assert best is not None and best.size_bytes < 3e9
    card = plain._replace(card_bytes=24 << 30, computes_on_cards=True)
    best = example(suggestions(), card)
    assert best is not None and best.size_bytes > 10e9


def test_advice_can_be_followed_and_shows_no_secret(config: Path) -> None:
    from backends.pulling.source import parse_source

    pinned = f"https://host/m.gguf#sha256={'a' * 64}"
    assert parse_source(pinned).advice == f"`chasqui models pull {pinned}`"
    for secret in ("https://host/m.gguf?token=hidden", "https://user:hidden@host/m.gguf"):
        assert "as the configuration has it" in parse_source(secret).advice
        assert "hidden" not in parse_source(secret).advice


def test_an_address_that_holds_a_secret_is_noted(hub: Hub, config: Path) -> None:
    source = f"{hub.url}/tiny.gguf?token=hidden"
    assert models(config, "pull", source).exit_code == 0
    assert "write ${NAME} in its place" in models(config, "add", source, "--dry-run").output
    assert "write ${NAME}" not in models(config, "add", "tiny", "--dry-run").output
