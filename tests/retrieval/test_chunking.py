import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.catalog import NewChunk
from retrieval.chunking import chunk, headings_of, title_of
from retrieval.parsing import Parsed
from retrieval.settings import ChunkSettings


def words(text: str) -> int:
    return len(text.split())


def sliced(text: str, max_tokens: int = 16, overlap_tokens: int = 0, *, markdown: bool = True) -> list[NewChunk]:
    return chunk(Parsed(text, markdown), ChunkSettings(max_tokens=max_tokens, overlap_tokens=overlap_tokens), words)


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
def test_no_chunk_is_larger_than_allowed_or_empty_and_each_is_a_piece_of_the_text(
    pieces: list[str], max_tokens: int, overlap: int, markdown: bool
) -> None:
    text = "".join(pieces)
    for one in sliced(text, max_tokens, overlap, markdown=markdown):
        assert 0 < one.tokens == words(one.text) <= max_tokens
        assert one.text in text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=400), st.integers(16, 30))
def test_sizes_hold_for_any_text_and_a_count_of_characters(text: str, max_tokens: int) -> None:
    for markdown in (True, False):
        made = chunk(Parsed(text, markdown), ChunkSettings(max_tokens=max_tokens, overlap_tokens=4), len)
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
    assert [title for _, _, title in headings_of(text)] == titles


@pytest.mark.parametrize(
    "text",
    ["````md\n```\n# no\n```\n````\n# yes", "```\n```python\n# no\n```\n# yes", "```code``` in a line\n\n# yes"],
    ids=["four marks", "an opening inside", "code in a line"],
)
def test_a_fence_ends_with_marks_of_its_own_length_alone_on_their_line(text: str) -> None:
    assert [title for _, _, title in headings_of(text)] == ["yes"]


@pytest.mark.parametrize(
    ("text", "markdown", "title"),
    [("intro\n\n## First\n# Second", True, "First"), ("no heading", True, ""), ("# First", False, "")],
)
def test_the_title_is_the_first_heading(text: str, markdown: bool, title: str) -> None:
    assert title_of(Parsed(text, markdown)) == title


def test_chunks_overlap_by_no_more_than_asked() -> None:
    text = " ".join(f"w{number}" for number in range(200))
    plain, overlapping = sliced(text, 20, 0, markdown=False), sliced(text, 20, 5, markdown=False)
    shared = [
        len(set(one.text.split()) & set(other.text.split()))
        for one, other in zip(overlapping, overlapping[1:], strict=False)
    ]
    assert all(0 < size <= 5 for size in shared)
    assert len(overlapping) > len(plain)
    assert sum(len(one.text.split()) for one in plain) == 200


@pytest.mark.parametrize("text", ["", "   \n\n\t", "# Only\n\n## Headings\n"])
def test_nothing_to_say_is_no_chunk(text: str) -> None:
    assert sliced(text) == []


def test_marks_of_headings_mean_nothing_in_plain_text() -> None:
    assert [one.text for one in sliced("# remember the milk", markdown=False)] == ["# remember the milk"]
