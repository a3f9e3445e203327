"""Models of the box."""

from pathlib import Path

import gguf
import pytest

from backends.boxed import MINILM_LOCK, prepare
from backends.errors import ModelFileUnusable


def test_guide_is_written_under_its_name_and_said_to_babble(tmp_path: Path) -> None:
    said: list[str] = []
    path = prepare("models/guide.gguf", home=tmp_path, config_dir=tmp_path, say=said.append)
    assert path == tmp_path / "models" / "guide.gguf"
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.name"].contents() == "guide (synthetic)"
    assert [entry.name for entry in path.parent.iterdir()] == ["guide.gguf"]
    assert "babbles" in said[0]
    reader.data._mmap.close()


def test_the_same_guide_is_written_every_time(tmp_path: Path) -> None:
    first, second = (
        prepare("guide.gguf", home=tmp_path / name, config_dir=tmp_path, say=lambda _: None).read_bytes()
        for name in ("a", "b")
    )
    assert first == second


@pytest.mark.parametrize("model", ["mine.gguf", "models/mine.gguf", "/models/guide.gguf"])
def test_another_model_is_not_invented_and_its_place_is_named(tmp_path: Path, model: str) -> None:
    with pytest.raises(ModelFileUnusable, match=f"put it into {tmp_path / model}"):
        prepare(model, home=tmp_path, config_dir=tmp_path, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The lock names a wheel that no index has to be asked about: a file that is not there."""
    lock = tmp_path / MINILM_LOCK
    lock.parent.mkdir()
    lock.write_text(f"{tmp_path.as_uri()}/gone-1-py3-none-any.whl --hash=sha256:{'0' * 64}\n")
    home = tmp_path / "home"
    with pytest.raises(ModelFileUnusable, match="could not be downloaded"):
        prepare("all-MiniLM-L6-v2.gguf", home=home, config_dir=tmp_path, say=lambda _: None)
    assert list(home.iterdir()) == []
