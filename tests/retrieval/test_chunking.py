import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.chunking import MAX_CODE_TOKENS, STRETCH_CHARS, Cut, blocks, chunk
from retrieval.parsing import Page, Parsed, parse
from retrieval.settings import ChunkSettings


def words(text: str) -> int:
    return len(text.split())


def sliced(
    text: str, max_tokens: int = 16, overlap_tokens: int = 0, *, markdown: bool = True, title: str = ""
) -> list[Cut]:
    settings = ChunkSettings(max_tokens=max_tokens, overlap_tokens=overlap_tokens)
    return chunk(Parsed(title, (Page(None, text),), markdown), settings, words, window_tokens=100)


def headings_of(text: str) -> list[str]:
    return [block.text for block in blocks(Parsed("", (Page(None, text),), markdown=True)) if block.kind == "heading"]


def sentence(name: str, size: int = 12) -> str:
    return " ".join(f"{name}{number}" for number in range(size)) + "."


DOCUMENT = f"""# Chasqui

{sentence("intro")}

## Quotas

{sentence("quota")}

### Windows

{sentence("window")}

```sh
# not a heading
{sentence("code", 8)}
```

## Años — 日本

{sentence("año")}

{sentence("more")}

# Second

{sentence("end")}
"""

PIECES = st.sampled_from(
    ["# Title\n\n", "## Sub\n\n", "```\n# code\n```\n\n", "word ", "ñandú 日本 ", "A sentence of six words here. ", "\n\n",
     "- item\n", "| a | b |\n|---|---|\n| 1 | 2 |\n\n", "~~~\n", "unbroken" * 30 + " "]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(PIECES, max_size=60),
    max_tokens=st.integers(16, 40),
    overlap=st.integers(0, 8),
    markdown=st.booleans(),
)
def test_no_chunk_is_larger_than_allowed_or_empty(
    pieces: list[str], max_tokens: int, overlap: int, markdown: bool
) -> None:
    text = "".join(pieces)
    for one in sliced(text, max_tokens, overlap, markdown=markdown):
        assert one.text.strip()
        assert one.tokens == words(one.text)
        if not markdown or not any(mark in text for mark in ("```", "~~~", "| a |")):
            assert one.tokens <= max_tokens
        assert one.windows


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=400), st.integers(16, 30))
def test_sizes_hold_for_any_plain_text_and_a_count_of_characters(text: str, max_tokens: int) -> None:
    parsed = Parsed("", (Page(None, text),), markdown=False)
    made = chunk(parsed, ChunkSettings(max_tokens=max_tokens, overlap_tokens=4), len, window_tokens=64)
    assert all(0 < one.tokens <= max_tokens for one in made)


def test_no_word_of_a_text_is_lost() -> None:
    text = "\n\n".join(sentence(f"p{number}_", 30) for number in range(5))
    assert " ".join(one.text for one in sliced(text)).split() == text.split()


def test_each_chunk_knows_the_headings_above_it() -> None:
    """The way also holds behind letters that take several bytes."""
    made = sliced(DOCUMENT)
    words_in = ("intro0", "quota0", "window0", "code0", "año0", "more0", "end0")
    headings = {word: next(one.heading for one in made if word in one.text) for word in words_in}
    assert headings == {
        "intro0": "Chasqui",
        "quota0": "Chasqui > Quotas",
        "window0": "Chasqui > Quotas > Windows",
        "code0": "Chasqui > Quotas > Windows",
        "año0": "Chasqui > Años — 日本",
        "more0": "Chasqui > Años — 日本",
        "end0": "Second",
    }


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("# One\n## Two ##\n###### Six", ["One", "Two", "Six"]),
        ("####### Seven", []),
        ("#hashtag\n#!shebang", []),
        ("```\n# no\n```\n# yes", ["yes"]),
        ("~~~\n# no\n```\n# no\n~~~\n# yes", ["yes"]),
        ("```python\n# no\n", []),
        ("text # no", []),
        ("", []),
    ],
)
def test_headings_are_lines_with_marks_outside_code_fences(text: str, titles: list[str]) -> None:
    assert headings_of(text) == titles


@pytest.mark.parametrize(
    "text",
    ["````md\n```\n# no\n```\n````\n# yes", "```\n```python\n# no\n```\n# yes", "```code``` in a line\n\n# yes"],
    ids=["four marks", "an opening inside", "code in a line"],
)
def test_a_fence_ends_with_marks_of_its_own_length_alone_on_their_line(text: str) -> None:
    assert headings_of(text) == ["yes"]


def test_chunks_overlap_by_no_more_than_asked() -> None:
    text = " ".join(sentence(f"s{number}_", 4) for number in range(40))
    plain, overlapping = sliced(text, 20, 0, markdown=False), sliced(text, 20, 5, markdown=False)
    shared = [
        len(set(one.text.split()) & set(other.text.split()))
        for one, other in zip(overlapping, overlapping[1:], strict=False)
    ]
    assert any(shared)
    assert all(size <= 5 for size in shared)
    assert sum(len(one.text.split()) for one in plain) == 160


def test_every_piece_of_a_table_has_its_head_and_whole_rows() -> None:
    rows = [f"| name{number} | {number} metres high |" for number in range(30)]
    made = sliced("\n".join(["# Peaks", "", "| peak | height |", "| --- | --- |", *rows]), 40)
    assert len(made) > 3
    for one in made:
        lines = [line for line in one.text.splitlines() if line.startswith("|")]
        assert lines[:2] == ["| peak | height |", "| --- | --- |"]
        assert all(line in rows for line in lines[2:])
        assert one.heading == "Peaks"
    assert sum(one.text.count("metres high") for one in made) == 30


def test_code_stays_whole_and_what_is_larger_than_any_chunk_is_cut_between_lines() -> None:
    code = "```py\n" + "\n".join(f"value_{number} = {number}" for number in range(60)) + "\n```"
    made = sliced(f"# A\n\nBefore it.\n\n{code}\n\nAfter it.", 32)
    assert sum(code in one.text for one in made) == 1
    huge = "```py\n" + "\n".join(f"value_{number} = {number}" for number in range(MAX_CODE_TOKENS)) + "\n```"
    for one in sliced(huge, 64):
        assert one.text.startswith("```py\n")
        assert one.text.endswith("\n```")


def test_a_chunk_longer_than_the_models_window_gets_several_vectors_each_under_its_heading() -> None:
    text = "# Long\n\n" + " ".join(f"w{number}" for number in range(300))
    parsed = Parsed("Title", (Page(None, text),), markdown=True)
    made = chunk(parsed, ChunkSettings(max_tokens=400, overlap_tokens=0), words, window_tokens=100)
    assert len(made) == 1
    assert len(made[0].windows) >= 3
    assert all(window.startswith("Title > Long\n") and words(window) <= 103 for window in made[0].windows)
    assert {f"w{number}" for number in range(300)} <= set(" ".join(made[0].windows).split())


def test_pages_and_titles_travel_with_chunks() -> None:
    parsed = Parsed("Book", (Page(1, "One page. " * 3), Page(2, "# Two\n\nAnother page.")), markdown=True)
    made = chunk(parsed, ChunkSettings(), words, window_tokens=100)
    assert [(one.page, one.heading) for one in made] == [(1, "Book"), (2, "Book > Two")]
    assert [
        (one.page, one.heading) for one in chunk(parse("notes.txt", b"words"), ChunkSettings(), words, window_tokens=9)
    ] == [(None, "notes")]


@pytest.mark.parametrize("text", ["", "   \n\n\t", "# Only\n\n## Headings\n"])
def test_nothing_to_say_is_no_chunk(text: str) -> None:
    assert sliced(text) == []


def test_marks_of_headings_mean_nothing_in_plain_text() -> None:
    assert [one.text for one in sliced("# remember the milk", markdown=False)] == ["# remember the milk"]


def test_a_long_text_without_joints_is_cut_a_stretch_at_a_time() -> None:
    """Else each chunk costs a look at all that is left: a megabyte without spaces took minutes."""
    text = "\u65e5\u672c\u8a9e" * 20_000
    asked: list[int] = []

    def count(piece: str) -> int:
        asked.append(len(piece))
        return len(piece)

    parsed = parse("a.txt", text.encode())
    cuts = chunk(parsed, ChunkSettings(max_tokens=256, overlap_tokens=0), count, window_tokens=256)
    assert "".join("".join(cut.text.split()) for cut in cuts) == text
    asked.remove(max(asked))  # the block itself, once, to see whether it is too large
    assert max(asked) <= STRETCH_CHARS
