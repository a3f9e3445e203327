"""Text -> chunks of at most so many tokens, cut where the text itself has joints. Pure: counting comes in as an argument.

A text is read as blocks: headings, code, tables, and everything else by paragraph. Chunks are filled with whole blocks. What is
larger than a chunk is cut by its kind: prose between sentences; a table between rows, each piece with the table's head; code
stays whole, unless it is larger than any chunk may be.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from semantic_text_splitter import TextSplitter

from retrieval.parsing import Parsed, heading_of
from retrieval.settings import ChunkSettings

MAX_CODE_TOKENS = 2048
"""Of code that stays whole."""

STRETCH_CHARS = 16_384
"""That are cut at a time."""

FULL_ENOUGH = 0.8
"""Of a chunk: from here on the next heading begins a new one. Its vectors are about one thing each; it may well be about two."""

Count = Callable[[str], int]
"""Tokens of a text, as the embedding model counts."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_TABLE_RULE = re.compile(r" {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n")


class Cut(NamedTuple):
    """A chunk as it is cut: what is shown, and what vectors are made of."""

    heading: str
    text: str
    tokens: int
    page: int | None
    windows: tuple[str, ...]
    """One for each vector: the text under its headings, in pieces that the embedding model can read."""


class Block(NamedTuple):
    kind: Literal["heading", "code", "table", "prose"]
    text: str
    page: int | None
    level: int = 0
    """Of a heading."""


@dataclass(slots=True)
class _Chunk:
    heading: str
    page: int | None
    parts: list[str] = field(default_factory=list)
    tokens: int = 0
    bare: bool = True
    """Nothing but headings and what the chunk before it said."""


def chunk(parsed: Parsed, settings: ChunkSettings, count: Count, *, window_tokens: int) -> list[Cut]:
    """Chunks in order of the text; none is empty. The heading of a chunk is the path of headings above its beginning, under the
    document's title.

    Args:
        window_tokens: what the embedding model reads of one text.
    """
    chunks = _Filling(settings, count, parsed.title).fill(blocks(parsed))
    return [_cut(one, count, min(settings.vector_tokens, window_tokens)) for one in chunks]


def blocks(parsed: Parsed) -> Iterator[Block]:
    for page in parsed.pages:
        yield from _markdown(page.text, page.number) if parsed.markdown else _plain(page.text, page.number)


def _plain(text: str, page: int | None) -> Iterator[Block]:
    for part in re.split(r"\n[ \t]*\n", text):
        if part.strip():
            yield Block("prose", part.strip("\n"), page)


def _markdown(text: str, page: int | None) -> Iterator[Block]:
    """CommonMark's leaf blocks, as far as they matter here (4.2, 4.5, and GitHub's tables)."""
    lines = text.split("\n")
    place = 0
    prose: list[str] = []

    def flush() -> Iterator[Block]:
        if any(line.strip() for line in prose):
            yield Block("prose", "\n".join(prose).strip("\n"), page)
        prose.clear()

    while place < len(lines):
        line = lines[place]
        if (fence := _FENCE.match(line)) and not (fence[1][0] == "`" and "`" in fence[2]):
            yield from flush()
            end = _end_of_code(lines, place, fence[1])
            yield Block("code", "\n".join(lines[place:end]), page)
            place = end
        elif heading := heading_of(line):
            yield from flush()
            yield Block("heading", heading[1], page, heading[0])
            place += 1
        elif "|" in line and place + 1 < len(lines) and "|" in lines[place + 1] and _TABLE_RULE.match(lines[place + 1]):
            yield from flush()
            end = next((n for n in range(place + 2, len(lines)) if "|" not in lines[n]), len(lines))
            yield Block("table", "\n".join(lines[place:end]), page)
            place = end
        else:
            if not line.strip():
                yield from flush()
            else:
                prose.append(line)
            place += 1
    yield from flush()


def _end_of_code(lines: Sequence[str], start: int, mark: str) -> int:
    for place in range(start + 1, len(lines)):
        close = _FENCE.match(lines[place])
        if close and close[1].startswith(mark) and not close[2].strip():
            return place + 1
    return len(lines)


class _Filling:
    """Blocks into chunks, one after the other."""

    def __init__(self, settings: ChunkSettings, count: Count, title: str) -> None:
        self._max_tokens = settings.max_tokens
        self._overlap_tokens = settings.overlap_tokens
        self._count = count
        self._title = title
        self._path: list[tuple[int, str]] = []
        self._chunks: list[_Chunk] = []
        self._gap_tokens = count("\n\n")
        # Room for what a piece repeats of the one before it.
        piece_tokens = max(settings.max_tokens // 2, settings.max_tokens - settings.overlap_tokens - self._gap_tokens)
        self._splitter = TextSplitter.from_callback(count, piece_tokens, 0)

    def fill(self, blocks: Iterator[Block]) -> list[_Chunk]:
        for block in blocks:
            if block.kind == "heading":
                self._enter(block)
                continue
            for number, piece in enumerate(self._pieces(block)):
                self._take(piece, block, continued=number > 0)
        return [one for one in self._chunks if not one.bare]

    def _enter(self, block: Block) -> None:
        self._path = [*(entry for entry in self._path if entry[0] < block.level), (block.level, block.text)]
        last = self._chunks[-1] if self._chunks else None
        line = f"{'#' * block.level} {block.text}"
        if last is None or last.tokens >= FULL_ENOUGH * self._max_tokens or last.page != block.page:
            self._begin(block.page)
        self._append(line)

    def _begin(self, page: int | None) -> _Chunk:
        self._chunks.append(_Chunk(self._heading(), page))
        return self._chunks[-1]

    def _heading(self) -> str:
        titles = [title for _, title in self._path]
        if self._title and self._title not in titles[:1]:
            titles.insert(0, self._title)
        return " > ".join(titles)

    def _append(self, text: str) -> None:
        last = self._chunks[-1]
        if last.bare and text.startswith("#"):
            last.heading = self._heading()
        last.tokens += self._count(text) + (self._gap_tokens if last.parts else 0)
        last.parts.append(text)

    def _take(self, piece: str, block: Block, *, continued: bool) -> None:
        tokens = self._count(piece)
        last = self._chunks[-1] if self._chunks else self._begin(block.page)
        too_much = last.tokens + self._gap_tokens + tokens > self._max_tokens
        if too_much and last.bare:  # the path says the headings, too
            last.parts.clear()
            last.tokens = 0
        full = too_much and not last.bare
        if full or (last.page != block.page and not last.bare):
            # What comes before it in the same section may be needed to understand it.
            tail = self._tail(last) if full and (continued or block.kind == "prose") and block.kind != "table" else ""
            last = self._begin(block.page)
            if tail and self._count(tail) + self._gap_tokens + tokens <= self._max_tokens:
                self._append(tail)
        if last.bare:
            last.page = block.page
        last.bare = False
        self._append(piece)

    def _tail(self, chunk: _Chunk) -> str:
        """The last sentences of a chunk, as many as overlap."""
        text = chunk.parts[-1]
        if not self._overlap_tokens or text.lstrip().startswith(("```", "~~~", "|", "#")):
            return ""
        sentences = [one for one in _SENTENCE_END.split(text) if one.strip()]
        tail: list[str] = []
        tokens = 0
        for sentence in reversed(sentences):
            tokens += self._count(sentence)
            if tokens > self._overlap_tokens:
                break
            tail.insert(0, sentence)
        return " ".join(tail)

    def _pieces(self, block: Block) -> Iterator[str]:
        limit = MAX_CODE_TOKENS if block.kind == "code" else self._max_tokens
        if self._count(block.text) <= limit:
            yield block.text
        elif block.kind == "table":
            yield from self._rows(block.text)
        elif block.kind == "code":
            yield from self._lines(block.text)
        else:
            yield from _split(self._splitter, block.text)

    def _rows(self, text: str) -> Iterator[str]:
        """Whole rows under the table's head, as many as fit. A row that is too long by itself is cut as prose is."""
        head, rule, *rows = text.split("\n")
        line = self._count("\n")
        above = self._count(head) + self._count(rule) + line
        room = max(16, self._max_tokens - above)
        group: list[str] = []
        used = 0
        for row in rows:
            tokens = self._count(row) + line
            if group and used + tokens > room:
                yield "\n".join([head, rule, *group])
                group, used = [], 0
            if tokens > room:
                parts = _split(TextSplitter.from_callback(self._count, room, 0), row)
                yield from (f"{head}\n{rule}\n{part}" for part in parts)
                continue
            group.append(row)
            used += tokens
        if group:
            yield "\n".join([head, rule, *group])

    def _lines(self, text: str) -> Iterator[str]:
        first, *lines = text.split("\n")
        mark = _FENCE.match(first)
        close = mark[1] if mark else "```"
        if lines and lines[-1].strip() == close:
            lines.pop()
        for part in _split(self._splitter, "\n".join(lines)):
            yield f"{first}\n{part}\n{close}"


def _split(splitter: TextSplitter, text: str) -> Iterator[str]:
    """In stretches: for each chunk the splitter looks at all that is left, so that a long text without joints takes for ever."""
    start = 0
    while start < len(text):
        end = min(start + STRETCH_CHARS, len(text))
        if end < len(text):
            joints = (text.rfind(joint, start + STRETCH_CHARS // 2, end) + 1 for joint in ("\n", ". ", "\u3002", " "))
            end = next((joint for joint in joints if joint), end)
        yield from splitter.chunks(text[start:end])
        start = end


def _cut(chunk: _Chunk, count: Count, room_tokens: int) -> Cut:
    text = "\n\n".join(chunk.parts)
    above = count(chunk.heading)
    head = chunk.heading + "\n" if chunk.heading and above <= room_tokens // 2 else ""
    windows = tuple(head + window for window in _windows(chunk.parts, count, max(16, room_tokens - above)))
    return Cut(chunk.heading, text, count(text), chunk.page, windows or (head + text,))


def _windows(parts: Sequence[str], count: Count, room_tokens: int) -> Iterator[str]:
    """What vectors are made of."""
    text = "\n\n".join(parts)
    yield from [text] if count(text) <= room_tokens else TextSplitter.from_callback(count, room_tokens, 0).chunks(text)
