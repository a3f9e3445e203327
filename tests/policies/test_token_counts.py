from pathlib import Path

import pytest

from backends.encodings import Encodings
from policies.token_counts import DEFAULT_ENCODING, closer_bound, upper_bound

pytestmark = pytest.mark.anyio

TEXTS = ["Hello, world", "", "los Andes, quipus y chasquis", "日本語のテキスト", "a" * 3000, "🦙" * 50]


@pytest.mark.parametrize("text", TEXTS)
async def test_bytes_are_an_upper_bound_and_the_count_is_closer(tiktoken_dir: Path, text: str) -> None:
    body, encodings = text.encode(), Encodings(tiktoken_dir)
    exact = encodings.count(DEFAULT_ENCODING, text)
    assert await closer_bound(body, encodings) == exact <= upper_bound(len(body))


async def test_known_text_has_its_known_count(tiktoken_dir: Path) -> None:
    assert await closer_bound(b"Hello, world", Encodings(tiktoken_dir)) == 3


async def test_bytes_that_are_no_text_are_counted_all_the_same(tiktoken_dir: Path) -> None:
    assert 0 < await closer_bound(b"\xff\xfe" * 20, Encodings(tiktoken_dir)) <= 120


async def test_without_encodings_the_bytes_are_the_bound() -> None:
    assert await closer_bound(b"x" * 101, Encodings(None)) == 101
    assert await closer_bound(b"", Encodings(None)) == 0
