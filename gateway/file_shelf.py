"""Results that were made once and may be fetched again: files by owner and id, bounded by bytes; the oldest go."""

import contextlib
import hashlib
import secrets
import time
from pathlib import Path

from gateway.errors import StoreUnavailable


class FileShelf:
    """
    Args:
        suffix: of all files.
    """

    def __init__(self, folder: Path, *, max_bytes: int, suffix: str, max_age_s: float | None = None) -> None:
        self._folder = folder
        self._max_age_s = max_age_s
        self._max_bytes = max_bytes
        self._suffix = suffix

    def get(self, owner: str, id_: str) -> bytes | None:
        """What is there, and not too old."""
        path = self._path(owner, id_)
        try:
            if self._max_age_s is not None and path.stat().st_mtime < time.time() - self._max_age_s:
                return None
            return path.read_bytes()
        except OSError:
            return None

    def put(self, owner: str, id_: str, data: bytes) -> None:
        """
        Raises:
            StoreUnavailable: the disk does not take it.
        """
        path = self._path(owner, id_)
        part = path.with_suffix(f".{secrets.token_hex(8)}.part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise StoreUnavailable(f"the result cannot be kept: {exc.strerror}; free some disk space") from None
        self._evict(but=path)

    def clear(self) -> None:
        for path in self._folder.glob("*"):
            path.unlink(missing_ok=True)

    def size(self) -> tuple[int, int]:
        """Files and bytes."""
        sizes = []
        with contextlib.suppress(OSError):
            sizes = [path.stat().st_size for path in self._folder.glob(f"*{self._suffix}")]
        return len(sizes), sum(sizes)

    def _evict(self, *, but: Path) -> None:
        with contextlib.suppress(OSError):  # another process evicts, too
            files = [
                (path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob(f"*{self._suffix}")
            ]
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self._max_bytes:
                    return
                if path != but:
                    path.unlink(missing_ok=True)
                    total -= size

    def _path(self, owner: str, id_: str) -> Path:
        """Of another owner the same id is another file, so nobody finds what is not theirs."""
        name = hashlib.sha256(f"{owner}\0{id_}".encode()).hexdigest()
        return self._folder / f"{name}{self._suffix}"
