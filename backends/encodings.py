"""tiktoken without the network: an encoding is used only where its file lies in a given folder, whole.

tiktoken deletes a damaged file and downloads it again, so the digest is checked before it may look.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tiktoken

FILES = {
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}
"""Encoding -> name of its file (sha1 of the address tiktoken knows) and the file's sha256."""

PIECE_CHARS = 100_000
"""tiktoken's regular expressions can panic on a megabyte of one character; pieces of this size cannot."""


class EncodingMissing(Exception):
    """The encoding's file is not there, or damaged."""


class Encodings:
    """
    Args:
        folder: None: no encoding is available.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._loaded: dict[str, tiktoken.Encoding] = {}

    def decode(self, name: str, tokens: Sequence[int]) -> str:
        """Blocks for a tenth of a second at the first use of an encoding.

        Raises:
            EncodingMissing
            ValueError: ids that the encoding does not have, or that are no text together.
        """
        encoding = self._encoding(name)
        try:
            return encoding.decode(list(tokens), errors="strict")
        except (KeyError, UnicodeDecodeError, OverflowError) as exc:
            raise ValueError(f"these token ids are not text in {name}") from exc

    def count(self, name: str, text: str) -> int:
        """Tokens of a text, counted in pieces, so a cut may add one.

        Raises:
            EncodingMissing
        """
        encoding = self._encoding(name)
        pieces = (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))
        return sum(_count(encoding, piece) for piece in pieces)

    def _encoding(self, name: str) -> "tiktoken.Encoding":
        if name not in self._loaded:
            self._check(name)
            import tiktoken

            before = os.environ.get("TIKTOKEN_CACHE_DIR")
            os.environ["TIKTOKEN_CACHE_DIR"] = str(self._folder)
            try:
                self._loaded[name] = tiktoken.get_encoding(name)
            finally:
                if before is None:
                    del os.environ["TIKTOKEN_CACHE_DIR"]
                else:
                    os.environ["TIKTOKEN_CACHE_DIR"] = before
        return self._loaded[name]

    def _check(self, name: str) -> None:
        file, digest = FILES[name]
        try:
            data = (self._folder / file).read_bytes() if self._folder else b""
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() != digest:
            raise EncodingMissing(
                f"the {name} encoding is not available offline; set TIKTOKEN_CACHE_DIR to a folder that holds {file}"
            )


def _count(encoding: "tiktoken.Encoding", piece: str) -> int:
    try:
        return len(encoding.encode_ordinary(piece))
    except BaseException as exc:  # tiktoken panics with a BaseException of its own; bytes are a safe upper bound
        if isinstance(exc, KeyboardInterrupt | SystemExit):
            raise
        return len(piece.encode("utf-8", "surrogatepass"))
