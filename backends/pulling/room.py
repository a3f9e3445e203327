"""Room on a disk, before anything is written; and sizes in words."""

import shutil
from pathlib import Path

from backends.errors import ModelFileUnusable

SPARE_BYTES = 64 << 20
"""That a download leaves free on its disk."""


def disk_free(folder: Path) -> int:
    """Bytes."""
    return shutil.disk_usage(folder).free


def check_room(shown: str, missing: int, folder: Path, free: int) -> None:
    """
    Args:
        missing: bytes that are still to be written.

    Raises:
        ModelFileUnusable: there would be less than `SPARE_BYTES` left.
    """
    if missing + SPARE_BYTES > free:
        raise ModelFileUnusable(
            f"{shown} needs {size_words(missing)} more, and {folder} has {size_words(free)} free, of which "
            f"{size_words(SPARE_BYTES)} stay free; remove something (`chasqui models list`, `chasqui models remove`) and pull again"
        )


def size_words(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
