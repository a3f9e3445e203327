"""Bytes of a file -> its text by pages, as Markdown where it has a structure. Runs in a process of its own (`parsers.py`).

Text and tables of values are read here; everything else that is on the list goes through kreuzberg. What is not on the list is
refused by name: that library would look for grammars on the network to read source code, and for a model to read pictures.
"""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

from retrieval.errors import DocumentUnreadable
from retrieval.sanitize import without_hidden

MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
TEXT = frozenset(
    ".txt .text .log .rst .adoc .org .tex .json .jsonl .ndjson .xml .yaml .yml .toml .ini .cfg .conf .env .properties .sql .css "
    ".scss .py .pyi .js .mjs .jsx .ts .tsx .java .kt .kts .c .h .cc .cpp .hpp .cs .go .rs .rb .php .pl .lua .sh .bash .zsh .ps1 "
    ".r .swift .scala .m .vue .svelte .proto .graphql .tf .diff .patch .srt .vtt .dockerfile .makefile".split()
)
VALUES = {".csv": None, ".tsv": "\t"}

_OFFICE = "application/vnd.openxmlformats-officedocument"
_OPEN = "application/vnd.oasis.opendocument"
DOCUMENTS = {
    ".pdf": "application/pdf",
    ".docx": f"{_OFFICE}.wordprocessingml.document",
    ".xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    ".pptx": f"{_OFFICE}.presentationml.presentation",
    ".doc": "application/msword",
    ".xls": "application/vnd.ms-excel",
    ".ppt": "application/vnd.ms-powerpoint",
    ".odt": f"{_OPEN}.text",
    ".ods": f"{_OPEN}.spreadsheet",
    ".rtf": "application/rtf",
    ".epub": "application/epub+zip",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".eml": "message/rfc822",
    ".msg": "application/vnd.ms-outlook",
    ".ipynb": "application/x-ipynb+json",
}
ZIPPED = frozenset({".docx", ".xlsx", ".pptx", ".odt", ".ods", ".epub"})
PAGED = frozenset({".pdf", ".pptx"})

KNOWN = MARKDOWN | TEXT | VALUES.keys() | DOCUMENTS.keys()

MAGIC = (
    b"%PDF-",
    b"PK\x03\x04",
    b"\xd0\xcf\x11\xe0",
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"{\\rtf",
    b"\x1f\x8b",
    b"\x7fELF",
)
"""How other kinds of files begin that are made of characters, in part."""

MAX_INFLATED_BYTES = 200 * 1024 * 1024
"""Of what a zipped document says it holds. One that lies about it meets the process's limit of memory."""

MAX_CHARS = 20_000_000
LONG_WORD_CHARS = 2_000
"""What has no space for so long is no word: it is broken, so that it can be cut and counted in reasonable time."""

MAX_CELL_CHARS = 1_000_000
MAX_COLUMNS = 1_000
MAX_CELLS = 2_000_000
SNIFFED_CHARS = 2_048
"""Of a table, to find out what stands between its values; the way of finding out is slow."""

_TITLE_BLOCK = re.compile(r"\A---\n\n## title: [^\n]*\n+(?:## [a-z_]+: [^\n]*\n+)*")
"""What kreuzberg puts in front of HTML; it is in the metadata, too."""

_FRONT_MATTER = re.compile(r"\A---[ \t]*\n((?:[A-Za-z_][\w-]*:.*\n(?:.*\n)*?)?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
"""Its first line has a key: else it is a line across the page."""

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_LONG_WORD = re.compile(rf"\S{{{LONG_WORD_CHARS}}}")
_BLOCK_SCALARS = frozenset(("", ">", "|", ">-", "|-", ">+", "|+"))


class Page(NamedTuple):
    number: int | None
    """From 1, where the document has pages; a slide is one, too."""
    text: str


class Parsed(NamedTuple):
    title: str
    pages: tuple[Page, ...]
    markdown: bool

    @property
    def text(self) -> str:
        return "\n\n".join(page.text for page in self.pages)


def parse(name: str, data: bytes) -> Parsed:
    """
    Raises:
        DocumentUnreadable: empty, of no known kind, damaged, protected, or without any text; in words for who uploaded it.
    """
    if not data:
        raise DocumentUnreadable(f"{name} is empty")
    suffix = suffix_of(name)
    if suffix in MARKDOWN:
        parsed = _markdown(_decode(name, data))
    elif suffix in TEXT:
        parsed = Parsed("", (Page(None, _decode(name, data)),), markdown=False)
    elif suffix in VALUES:
        parsed = _values(name, _decode(name, data), VALUES[suffix])
    elif suffix in DOCUMENTS:
        parsed = _document(name, suffix, data)
    else:
        raise DocumentUnreadable(
            f"{name} is of a kind that is not read here{' (it has no extension)' if not suffix else ''}", kind=True
        )
    return _checked(name, parsed)


def suffix_of(name: str) -> str:
    """In lower case; of `.env` and `Makefile`, the name itself."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    whole = f".{path.name.lower().lstrip('.')}"
    return suffix if suffix or whole not in TEXT else whole


def _checked(name: str, parsed: Parsed) -> Parsed:
    pages = tuple(Page(page.number, _LONG_WORD.sub(r"\g<0> ", without_hidden(page.text))) for page in parsed.pages)
    if not any(page.text.strip() for page in pages):
        hint = "; pictures of text are not read" if PurePath(name).suffix.lower() == ".pdf" else ""
        raise DocumentUnreadable(f"{name} holds no text{hint}")
    if (size := sum(len(page.text) for page in pages)) > MAX_CHARS:
        raise DocumentUnreadable(f"{name} holds {size} characters of text; {MAX_CHARS} are read at most")
    title = " ".join(without_hidden(parsed.title).split())[:200]
    return Parsed(title or PurePath(name).stem, pages, parsed.markdown)


def _decode(name: str, data: bytes) -> str:
    """UTF-8, UTF-16 with its mark, else Windows' Latin alphabet, as long as it is text at all."""
    if data.startswith(MAGIC):
        raise DocumentUnreadable(f"{name} is named like text, and is something else; give it its right extension")
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    strange = sum(character < " " and character not in "\t\n\r\f\x1b" for character in text[:8192])
    if "\0" in text[:8192] or strange > len(text[:8192]) // 50:
        raise DocumentUnreadable(f"{name} is named like text but holds binary data")
    return text


def _markdown(text: str) -> Parsed:
    text = text.replace("\r\n", "\n")
    title = ""
    if front := _FRONT_MATTER.match(text):
        text = text[front.end() :]
        named = [line.partition(":")[2].strip() for line in front[1].splitlines() if line.startswith("title:")]
        title = named[0].strip("\"'") if named and named[0] not in _BLOCK_SCALARS else ""
    text = _without_comments(text)
    return Parsed(title or _first_heading(text), (Page(None, text),), markdown=True)


def _without_comments(text: str) -> str:
    """HTML's, where they end, and are not code."""
    kept: list[str] = []
    place = 0
    for start, end in _outside_of_fences(text):
        kept.append(text[place:start])
        place = start
        while (begin := text.find("<!--", place, end)) >= 0 and (close := text.find("-->", begin, end)) >= 0:
            line = text.rfind("\n", 0, begin) + 1
            if text.count("`", line, begin) % 2:  # inline code speaks of comments
                kept.append(text[place : begin + 4])
                place = begin + 4
            else:
                kept.append(text[place:begin])
                place = close + 3
        kept.append(text[place:end])
        place = end
    return "".join([*kept, text[place:]])


def _outside_of_fences(text: str) -> Iterator[tuple[int, int]]:
    """[start, end) of what stands between blocks of code."""
    start, place, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        bare = line.lstrip(" ")
        if not fence and bare.startswith(("```", "~~~")):
            fence = bare[:3]
            yield start, place
        elif fence and bare.startswith(fence) and not bare.strip().strip(fence[0]):
            fence, start = "", place + len(line)
        place += len(line)
    if not fence:
        yield start, place


def _first_heading(text: str) -> str:
    for start, end in _outside_of_fences(text):
        for line in text[start:end].splitlines():
            if heading := heading_of(line):
                return heading[1]
    return ""


def heading_of(line: str) -> tuple[int, str] | None:
    """(level, title) of a line that is one in Markdown (CommonMark 4.2)."""
    marks = len(line) - len(line.lstrip("#"))
    if not 1 <= marks <= 6 or line[marks : marks + 1] not in (" ", "\t"):
        return None
    title = line[marks:].strip()
    bare = title.rstrip("#")
    title = bare.rstrip() if bare != title and bare.endswith((" ", "\t")) else title
    return (marks, title) if title.strip("#") else None


def _values(name: str, text: str, delimiter: str | None) -> Parsed:
    """A table; its first row is its head."""
    if delimiter is None:
        try:
            delimiter = csv.Sniffer().sniff(text[:SNIFFED_CHARS], delimiters=",;\t|").delimiter
        except csv.Error:
            delimiter = ","
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        rows = [
            row
            for row in csv.reader(io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")), delimiter=delimiter)
            if any(map(str.strip, row))
        ]
    except csv.Error as exc:
        raise DocumentUnreadable(f"{name} is no table of values: {exc}") from None
    if not rows:
        raise DocumentUnreadable(f"{name} holds no rows")
    if (width := max(map(len, rows))) > MAX_COLUMNS:
        raise DocumentUnreadable(f"{name} has {width} columns; {MAX_COLUMNS} are read at most")
    if width * len(rows) > MAX_CELLS:
        raise DocumentUnreadable(f"{name} has {len(rows)} rows of {width} columns; {MAX_CELLS} cells are read at most")
    return Parsed("", (Page(None, table(rows)),), markdown=True)


def table(rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in row] for row in rows]
    width = max(map(len, lines))
    written = ["| " + " | ".join([*line, *[""] * (width - len(line))]) + " |" for line in lines]
    return "\n".join([written[0], "|" + " --- |" * width, *written[1:]])


def _document(name: str, suffix: str, data: bytes) -> Parsed:
    import kreuzberg  # 50 ms to import, and most collections are text

    _check_inflated(name, suffix, data)
    if DOCUMENTS[suffix] == "text/html":
        data = _html(name, data)
    config = kreuzberg.ExtractionConfig(
        output_format="markdown",  # else headings are lost
        use_cache=False,
        disable_ocr=True,
        include_document_structure=suffix in PAGED,
    )
    try:
        result = kreuzberg.extract_bytes_sync(data, DOCUMENTS[suffix], config)
    except (kreuzberg.KreuzbergError, ValueError, RuntimeError, OSError, MemoryError) as exc:
        raise DocumentUnreadable(f"{name} cannot be read: {_plain_words(exc)}") from None
    metadata = dict(result.metadata or {})
    title = str(metadata.get("title") or metadata.get("subject") or "")
    if suffix in PAGED and result.document:
        pages = _pages(result.document["nodes"])
    else:
        content = str(result.content)
        pages = (Page(None, _TITLE_BLOCK.sub("", content) if DOCUMENTS[suffix] == "text/html" else content),)
    return Parsed(title or _first_heading("\n".join(page.text for page in pages)), pages, markdown=True)


def _html(name: str, data: bytes) -> bytes:
    """In UTF-8: the library knows nothing else."""
    said = _CHARSET.search(data[:4096])
    if said is not None and not data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode(said[1].decode("ascii"), "replace").encode("utf-8", "replace")
        except LookupError:
            pass  # of no alphabet that is known: judged by its bytes
    return _decode(name, data).encode("utf-8", "replace")


def _check_inflated(name: str, suffix: str, data: bytes) -> None:
    if suffix not in ZIPPED:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise DocumentUnreadable(f"{name} is no {suffix} file: {exc}") from None
    if inflated > MAX_INFLATED_BYTES:
        raise DocumentUnreadable(
            f"{name} unpacks to {inflated // 2**20} MB; {MAX_INFLATED_BYTES // 2**20} are read at most"
        )


def _plain_words(exc: BaseException) -> str:
    words = str(exc).strip() or type(exc).__name__
    if "password" in words.lower():
        return "it is protected by a password"
    return words.removeprefix("ParsingError: ")[:200]


def _pages(nodes: Iterable[Mapping[str, Any]]) -> tuple[Page, ...]:
    """By the structure that kreuzberg finds: its Markdown does not say where pages begin. A slide is a group that stands in no
    other; its title comes without a number."""
    texts: dict[int, list[str]] = {}
    number = 1
    slides = 0
    for node in nodes:
        content = node["content"]
        if content["node_type"] == "page_break":
            number += 1
        elif content["node_type"] == "group" and node.get("parent") is None:
            number = slides = max(slides + 1, number + (slides > 0))
        elif written := _written(content):
            number = node.get("page") or number
            slides = max(slides, number if slides else 0)
            texts.setdefault(number, []).append(written)
    return tuple(Page(number, "\n\n".join(parts)) for number, parts in sorted(texts.items()))


def _written(content: Mapping[str, Any]) -> str:
    kind, text = content["node_type"], str(content.get("text") or "")
    if kind == "heading":
        return f"{'#' * min(6, int(content.get('level') or 1))} {' '.join(text.split())}" if text.strip() else ""
    if kind == "table":
        return _grid(content.get("grid") or content)
    if kind == "code":
        return f"```\n{text}\n```" if text.strip() else ""
    if kind in ("group", "list", "page_break", "image"):
        return ""
    joined = re.sub(r"(?<=\w)-[ \t]*\r?\n[ \t]*(?=[a-zà-ÿ])", "", text)  # a word that was divided at the end of a line
    return ("- " if kind == "list_item" else "") + " ".join(joined.split())


def _grid(grid: Mapping[str, Any]) -> str:
    cells = grid.get("cells") or []
    if cells and isinstance(cells[0], Mapping):
        rows: dict[int, dict[int, str]] = {}
        for cell in cells:
            rows.setdefault(int(cell.get("row", 0)), {})[int(cell.get("col", 0))] = str(cell.get("content") or "")
        lines = [[row.get(place, "") for place in range(max(row) + 1)] for _, row in sorted(rows.items())]
    else:
        lines = [[str(cell) for cell in row] for row in cells]
    return table(lines) if any(lines) else ""
