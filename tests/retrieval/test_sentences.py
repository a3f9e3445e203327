"""Text -> sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.sentences import sentences


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            "Mr. Smith met Dr. J. Jones, e.g. at 3.5 km. They ran.",
            ["Mr. Smith met Dr. J. Jones, e.g. at 3.5 km.", "They ran."],
        ),
        ('He said: "Run!" Then he ran.', ['He said: "Run!"', "Then he ran."]),
        ("A line that was\nbroken for its length. Another.", ["A line that was broken for its length.", "Another."]),
        ("# Title\ntext below\n\nnext", ["# Title", "text below", "next"]),
        ("- one\n- two\n1. three", ["- one", "- two", "1. three"]),
        ("走る。歩く。", ["走る。", "歩く。"]),
        ("... --- !!!", []),
    ],
)
def test_sentences_end_where_they_end(text: str, found: list[str]) -> None:
    assert sentences(text) == found


@given(st.text(alphabet='aB1.!? \n#-|。"', max_size=200))
def test_no_letter_is_lost_and_none_comes_twice(text: str) -> None:
    kept = "".join(char for char in "".join(sentences(text)) if char.isalpha())
    assert kept == "".join(char for char in text if char.isalpha())


@pytest.mark.parametrize(
    "text", ["1. " * 100_000, "A. B. C. " * 50_000, "ab\n" * 200_000, "a" * 1_000_000, ". " * 200_000]
)
def test_long_texts_take_as_long_as_they_are(text: str) -> None:
    """A minute for a square of their length; the suite's limit ends the test."""
    assert len("".join(sentences(text))) <= 2 * len(text)
