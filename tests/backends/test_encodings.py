"""tiktoken with files that are there, and without."""

import os
from pathlib import Path

import pytest

from backends.encodings import FILES, PIECE_CHARS, EncodingMissing, Encodings


@pytest.fixture(scope="module")
def encodings(tiktoken_dir: Path) -> Encodings:
    return Encodings(tiktoken_dir)


@pytest.mark.parametrize(
    ("name", "tokens", "text"),
    [
        ("cl100k_base", [15339, 1917], "hello world"),
        ("o200k_base", [24912, 2375], "hello world"),
        ("o200k_base", [], ""),
    ],
)
def test_token_ids_become_text_and_text_is_counted(
    encodings: Encodings, name: str, tokens: list[int], text: str
) -> None:
    assert encodings.decode(name, tokens) == text
    assert encodings.count(name, text) == len(tokens)


@pytest.mark.parametrize("tokens", [[10**7], [-1], [2**40], [100261], [240]])
def test_ids_that_are_no_text_are_a_value_error(encodings: Encodings, tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="not text in cl100k_base"):
        encodings.decode("cl100k_base", tokens)


def test_special_tokens_in_a_text_are_counted_as_text(encodings: Encodings) -> None:
    assert encodings.count("cl100k_base", "<|endoftext|>") > 1


def test_a_long_text_is_counted_in_pieces(encodings: Encodings) -> None:
    one = encodings.count("cl100k_base", "x" * PIECE_CHARS)
    assert encodings.count("cl100k_base", "x" * (2 * PIECE_CHARS)) == 2 * one > 0


def test_half_a_surrogate_pair_can_be_counted(encodings: Encodings) -> None:
    assert encodings.count("cl100k_base", "a\ud800b") > 0


def test_the_environment_is_as_it_was(tiktoken_dir: Path) -> None:
    before = dict(os.environ)
    Encodings(tiktoken_dir).count("cl100k_base", "x")
    assert dict(os.environ) == before


@pytest.mark.parametrize("state", ["none", "absent", "damaged"])
def test_an_encoding_without_a_whole_file_is_missing_and_the_file_stays(tmp_path: Path, state: str) -> None:
    file = tmp_path / FILES["cl100k_base"][0]
    if state == "damaged":
        file.write_bytes(b"IQ== 0\n")
    with pytest.raises(EncodingMissing, match=f"TIKTOKEN_CACHE_DIR to a folder that holds {file.name}"):
        Encodings(None if state == "none" else tmp_path).count("cl100k_base", "x")
    assert file.exists() is (state == "damaged")
