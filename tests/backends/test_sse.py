"""The parser of event streams: frames come out whole, whatever the pieces were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import sse

STREAM = b"event: a\ndata: {1}\n\n: note\n\ndata: x\r\ndata:y\r\n\r\ndata: \xe2\x80\xa8\r\rid: 7\n\ndata: [DONE]\n\n"


def read(*pieces: bytes) -> list[sse.Frame]:
    reader = sse.Reader()
    return [frame for piece in pieces for frame in reader.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_cut_of_a_stream_gives_the_same_frames(cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), len(STREAM)]
    assert read(*(STREAM[start:end] for start, end in zip(ends, ends[1:], strict=False))) == read(STREAM)


def test_frames_say_their_data_and_event_and_keep_every_byte() -> None:
    frames = read(STREAM)
    assert [(frame.data, frame.event) for frame in frames] == [
        (b"{1}", "a"),
        (None, None),
        (b"x\ny", None),
        (b"\xe2\x80\xa8", None),
        (None, None),
        (b"[DONE]", None),
    ]
    assert b"".join(frame.raw for frame in frames) == STREAM


@pytest.mark.parametrize(
    ("line", "data"),
    [(b"data: a", b"a"), (b"data:a", b"a"), (b"data:  a", b" a"), (b"data", b""), (b"database: a", None)],
)
def test_one_space_after_the_colon_is_not_part_of_the_data(line: bytes, data: bytes | None) -> None:
    assert read(line + b"\n\n")[0].data == data


def test_other_line_separators_of_unicode_are_content() -> None:
    content = "a\u2028b\u2029c\x85d\x0be".encode()
    assert [frame.data for frame in read(b"data: " + content + b"\n\n")] == [content]


def test_a_bare_carriage_return_at_the_end_waits_for_its_other_half() -> None:
    reader = sse.Reader()
    assert reader.feed(b"data: a\r\n\r") == []
    assert [frame.raw for frame in reader.feed(b"\ndata: b")] == [b"data: a\r\n\r\n"]
    assert reader.rest() == b"data: b"


def test_an_event_that_never_ends_is_refused_at_the_limit() -> None:
    reader = sse.Reader(max_frame_bytes=10)
    assert reader.feed(b"data: 1234") == []
    with pytest.raises(sse.FrameTooLarge, match="longer than 10 bytes"):
        reader.feed(b"5")


def test_the_limit_is_for_one_event_and_not_for_the_stream() -> None:
    assert len([sse.Reader(max_frame_bytes=10).feed(b"data: 1\n\n" * 50)][0]) == 50


def test_encoded_frames_read_back_as_they_were() -> None:
    assert read(sse.encode(b'{"a":1}', event="error") + sse.DONE) == [
        sse.Frame(b'event: error\ndata: {"a":1}\n\n', b'{"a":1}', "error"),
        sse.Frame(b"data: [DONE]\n\n", b"[DONE]"),
    ]


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert read(b"\xef\xbb\xbfdata: a\n\n")[0].data == b"a"
