"""Text -> chunks of at most so many tokens, cut where the text itself has joints. Pure: counting comes in as an argument."""

import re
from collections.abc import Callable

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from retrieval.catalog import NewChunk
from retrieval.parsing import Parsed
from retrieval.settings import ChunkSettings

_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$|^ {0,3}(`{3,}|~{3,})(.*)$", re.MULTILINE)


def title_of(parsed: Parsed) -> str:
    """The first heading of a Markdown text, or nothing."""
    headings = headings_of(parsed.text) if parsed.markdown else []
    return headings[0][2] if headings else ""


def chunk(parsed: Parsed, settings: ChunkSettings, count: Callable[[str], int]) -> list[NewChunk]:
    """Chunks in order of the text; none is empty. The heading path of a chunk is that of its first character.

    Args:
        count: tokens of a text, as the embedding model counts.
    """
    make = MarkdownSplitter if parsed.markdown else TextSplitter
    splitter = make.from_callback(count, settings.max_tokens, settings.overlap_tokens)
    headings = headings_of(parsed.text) if parsed.markdown else []
    return [
        NewChunk(path_at(headings, start, text), text, count(text))
        for start, text in splitter.chunk_indices(parsed.text)
        if text.strip() and not (parsed.markdown and _only_headings(text))
    ]


def headings_of(text: str) -> list[tuple[int, int, str]]:
    """(offset, level, title) of each Markdown heading outside code fences (CommonMark 4.2 and 4.5)."""
    headings: list[tuple[int, int, str]] = []
    fence = ""
    for match in _HEADING.finditer(text):
        mark, info = match[3], match[4]
        if mark and not fence:
            fence = "" if mark[0] == "`" and "`" in info else mark
        elif mark and mark.startswith(fence) and not info.strip():
            fence = ""
        elif not mark and not fence:
            headings.append((match.start(), len(match[1]), match[2].strip()))
    return headings


def path_at(headings: list[tuple[int, int, str]], start: int, text: str) -> str:
    """`Title > Section > Subsection` above a place. A chunk that begins with headings belongs to the last of those."""
    begin = start + len(text) - len(re.sub(r"\A(?:#{1,6}[ \t].*\n+)+", "", text))
    path: list[tuple[int, str]] = []
    for offset, level, title in headings:
        if offset > max(start, begin - 1):
            break
        path = [*(entry for entry in path if entry[0] < level), (level, title)]
    return " > ".join(title for _, title in path)


def _only_headings(text: str) -> bool:
    return all(not line.strip() or re.match(r"#{1,6}\s", line) for line in text.splitlines())
