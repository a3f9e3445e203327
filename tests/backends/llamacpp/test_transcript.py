"""Bytes of tokens become text, whatever the tokens were."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backends.llamacpp.transcript import Transcript

STOPS = st.lists(st.text("abñ€", min_size=1, max_size=4), max_size=3)


def read(stops: list[str], *pieces: bytes) -> list[str]:
    transcript = Transcript(stops)
    return [*(transcript.feed(piece) for piece in pieces), transcript.finish()]


@given(st.text("abñ€🦙\n", max_size=30), STOPS, st.lists(st.integers(0, 90)))
def test_any_cut_into_pieces_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    assume(not any(one in other[1:] for one in stops for other in stops))
    data = text.encode()
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in zip(ends, ends[1:], strict=False)]
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert "".join(read(stops, *pieces)) == text[: min(places, default=len(text))]


def test_a_stop_inside_a_stop_ends_the_text_at_the_same_place_whatever_the_pieces() -> None:
    assert "".join(read(["abcd", "bc"], b"abcd")) == "".join(read(["abcd", "bc"], b"abc", b"d"))


@pytest.mark.parametrize("character", ["ñ", "€", "🦙"])
def test_half_a_character_waits_for_its_other_half(character: str) -> None:
    data = character.encode()
    assert read([], data[:1], data[1:]) == ["", character, ""]


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([b"a", b"\xf0\x9f", b""], ["a", "", "", "\ufffd"]),
        ([b"\xffa", b"b"], ["\ufffda", "b", ""]),
        ([b"\xe2\x82a"], ["\ufffda", ""]),
    ],
)
def test_bytes_that_are_no_text_become_replacement_characters(pieces: list[bytes], texts: list[str]) -> None:
    assert read([], *pieces) == texts


def test_text_goes_out_as_soon_as_it_is_certain() -> None:
    assert read(["END"], b"a", b"E", b"N", b"x", b"yE") == ["a", "", "", "ENx", "y", "E"]


def test_a_stop_across_pieces_ends_the_text_and_shows_none_of_it() -> None:
    transcript = Transcript(["\n\nUser:"])
    assert [transcript.feed(piece) for piece in (b"hi\n", b"\nUs", b"er: more", b"and more")] == ["hi", "", "", ""]
    assert (transcript.stopped, transcript.finish()) == (True, "")


def test_a_stop_of_several_bytes_across_pieces_is_found() -> None:
    assert read(["€"], b"a\xe2", b"\x82", b"\xacb") == ["a", "", "", ""]


def test_the_earliest_stop_counts_and_empty_ones_do_not() -> None:
    transcript = Transcript(["c", "", "bc"])
    assert (transcript.feed(b"abcd"), transcript.stopped) == ("a", True)


def test_a_text_without_its_stop_is_not_stopped() -> None:
    transcript = Transcript(["x"])
    assert (transcript.feed(b"abc") + transcript.finish(), transcript.stopped) == ("abc", False)
