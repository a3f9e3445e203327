"""Bytes of a file -> its text by pages, as Markdown where it has a structure. Runs in a process of its own (`parsers.py`).

Text and tables of values are read here; everything else that is on the list goes through kreuzberg. What is not on the list is
refused by name: that library would look for grammars on the network to read source code, and for a model to read pictures.
"""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
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
MAX_CELL_CHARS = 1_000_000
MAX_COLUMNS = 1_000

_TITLE_BLOCK = re.compile(r"\A---\n\n## title: [^\n]*\n+(?:## [a-z_]+: [^\n]*\n+)*")
"""What kreuzberg puts in front of HTML; it is in the metadata, too."""

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FIRST_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", re.MULTILINE)


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
    suffix = PurePath(name).suffix.lower()
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


def _checked(name: str, parsed: Parsed) -> Parsed:
    pages = tuple(Page(page.number, without_hidden(page.text)) for page in parsed.pages)
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
        named = _FRONT_TITLE.search(front[1])
        title = named[1] if named else ""
    text = _COMMENT.sub("", text)
    return Parsed(title or _first_heading(text), (Page(None, text),), markdown=True)


def _first_heading(text: str) -> str:
    found = _FIRST_HEADING.search(text)
    return found[1] if found else ""


def _values(name: str, text: str, delimiter: str | None) -> Parsed:
    """A table; its first row is its head."""
    if delimiter is None:
        try:
            delimiter = csv.Sniffer().sniff(text[:16_384], delimiters=",;\t|").delimiter
        except csv.Error:
            delimiter = ","
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(map(str.strip, row))]
    except csv.Error as exc:
        raise DocumentUnreadable(f"{name} is no table of values: {exc}") from None
    if not rows:
        raise DocumentUnreadable(f"{name} holds no rows")
    if (width := max(map(len, rows))) > MAX_COLUMNS:
        raise DocumentUnreadable(f"{name} has {width} columns; {MAX_COLUMNS} are read at most")
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
    """By the structure that kreuzberg finds: its Markdown does not say where pages begin."""
    texts: dict[int, list[str]] = {}
    waiting: list[str] = []  # headings of slides come without a number, right before what they stand over
    number = 1
    for node in nodes:
        content = node["content"]
        written = _written(content)
        if content["node_type"] == "page_break":
            texts.setdefault(number, []).extend(waiting)
            waiting = []
            number += 1
        elif written and node.get("page") is None and content["node_type"] == "heading":
            waiting.append(written)
        elif written:
            number = node.get("page") or number
            texts.setdefault(number, []).extend([*waiting, written])
            waiting = []
    texts.setdefault(number, []).extend(waiting)
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
    joined = re.sub(r"(?<=\w)-\s*\n\s*(?=[a-zà-ÿ])", "", text)  # a word that was divided at the end of a line
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
