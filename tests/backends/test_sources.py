"""Where model files and documents are found."""

from pathlib import Path

import pytest

from backends.errors import ModelFileUnusable
from backends.sources import find_model, matching_files


def test_home_comes_before_the_configuration_and_both_before_nothing(tmp_path: Path) -> None:
    home, config = tmp_path / "home", tmp_path / "config"
    for folder in (home, config):
        folder.mkdir()
    (config / "m.gguf").touch()
    assert find_model("m.gguf", home=home, config_dir=config) == config / "m.gguf"
    (home / "m.gguf").touch()
    assert find_model("m.gguf", home=home, config_dir=config) == home / "m.gguf"
    assert find_model(str(config / "m.gguf"), home=home, config_dir=config) == config / "m.gguf"


def test_a_missing_model_names_all_places_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()  # a folder is no model
    with pytest.raises(ModelFileUnusable, match="chasqui models prepare") as caught:
        find_model("m.gguf", home=tmp_path, config_dir=tmp_path / "config")
    assert f"{tmp_path / 'm.gguf'} and {tmp_path / 'config' / 'm.gguf'}" in str(caught.value)


def test_a_missing_absolute_path_is_looked_for_there_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelFileUnusable, match=r"looked for \S+/gone.gguf\)"):
        find_model(str(tmp_path / "gone.gguf"), home=tmp_path, config_dir=tmp_path)


def test_globs_give_each_file_once_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    files = [tmp_path / "a.md", tmp_path / "b" / "c.md", tmp_path / "z.txt"]
    for file in files:
        file.touch()
    patterns = ["z.txt", "**/*.md", "a.md", "b", str(tmp_path / "*.md"), "none/*"]
    assert matching_files(patterns, root=tmp_path) == files
    assert matching_files(["*.md"], root=tmp_path / "b") == [tmp_path / "b" / "c.md"]


def test_a_source_that_was_not_pulled_is_named_without_its_secrets(tmp_path: Path) -> None:
    places = {"home": tmp_path, "config_dir": tmp_path}
    with pytest.raises(
        ModelFileUnusable, match=r"^https://h/m\.gguf is not here; run `chasqui models pull` with"
    ) as refused:
        find_model("https://user:secret@h/m.gguf?token=secret", **places)
    assert "secret" not in str(refused.value)
    pinned = f"https://h/m.gguf#sha256={'a' * 64}"
    with pytest.raises(ModelFileUnusable, match=f"is not here; run `chasqui models pull {pinned}`, or"):
        find_model(pinned, **places)
