"""Results that were made once and may be fetched again: files by owner and id, bounded by bytes; the longest unused go."""

import contextlib
import hashlib
import os
from pathlib import Path

from gateway.errors import StoreUnavailable


class FileShelf:
    """
    Args:
        suffix: of all files.
    """

    def __init__(self, folder: Path, *, max_bytes: int, suffix: str) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._suffix = suffix

    def get(self, owner: str, id_: str) -> bytes | None:
        """What is there; reading it makes it the last one to go."""
        path = self._path(owner, id_)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, owner: str, id_: str, data: bytes) -> None:
        """
        Raises:
            StoreUnavailable: the disk does not take it.
        """
        path = self._path(owner, id_)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(path)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise StoreUnavailable(f"the result cannot be kept: {exc.strerror}; free some disk space") from None
        self._evict(but=path)

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
