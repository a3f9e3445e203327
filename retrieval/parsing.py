"""Bytes of a file -> text. Text formats are read as they are; everything else goes through kreuzberg, in a thread."""

import asyncio
import mimetypes
import re
from pathlib import PurePath
from typing import NamedTuple

from retrieval.errors import DocumentUnreadable

TEXT_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst", ".text", ".log"})


_FRONT_BLOCK = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
"""Metadata that kreuzberg puts in front of Markdown."""


class Parsed(NamedTuple):
    text: str
    markdown: bool


async def parse(name: str, data: bytes) -> Parsed:
    """
    Raises:
        DocumentUnreadable: no known kind of file, damaged, or without any text.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix in TEXT_SUFFIXES:
        parsed = Parsed(_decode(name, data), markdown=suffix in (".md", ".markdown"))
    else:
        parsed = Parsed(await asyncio.to_thread(_extract, name, data), markdown=True)
    parsed = parsed._replace(text=parsed.text.replace("\0", " "))  # PostgreSQL has no place for it in a text
    if not parsed.text.strip():
        raise DocumentUnreadable(f"{name} holds no text")
    return parsed


def _decode(name: str, data: bytes) -> str:
    if b"\0" in data[:4096]:
        raise DocumentUnreadable(f"{name} is named like text but holds binary data")
    return data.decode("utf-8-sig", "replace").replace("\r\n", "\n")


def _extract(name: str, data: bytes) -> str:
    import kreuzberg  # 50 ms to import, and most collections are text

    kind = mimetypes.guess_type(name)[0]
    if kind is None:
        raise DocumentUnreadable(f"{name} is of a kind that nothing here can read")
    try:
        config = kreuzberg.ExtractionConfig(output_format="markdown")  # else headings are lost
        return _FRONT_BLOCK.sub("", str(kreuzberg.extract_bytes_sync(data, kind, config).content))
    except (kreuzberg.KreuzbergError, ValueError, RuntimeError, OSError) as exc:
        raise DocumentUnreadable(f"{name} cannot be read: {exc}") from None
