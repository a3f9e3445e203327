"""Model files staged in memory (`/dev/shm`), so that a model that was stopped is back without reading a disk."""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from backends.errors import ModelFileUnusable

ROOT = Path("/dev/shm")  # noqa: S108 - the point of it
LEFTOVER_S = 600.0

MARGIN_BYTES = 64 * 2**20
"""That others of this machine keep."""


class Staged(NamedTuple):
    """One file there."""

    path: Path
    bytes: int


class RamDisk:
    """
    Args:
        root: a file system in memory.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._folder = root / f"chasqui-models-{os.getuid()}"
        self._turn = asyncio.Lock()

    async def stage(self, path: Path) -> Path:
        """A copy of `path` in memory; the one that is there already where the file has not changed.

        Raises:
            ModelFileUnusable: there is no such file system, or no room; says how much there is.
        """
        async with self._turn:
            copying = asyncio.ensure_future(asyncio.to_thread(self._stage, path))
            try:
                return await asyncio.shield(copying)
            except asyncio.CancelledError:  # the thread goes on, so nobody else may begin
                await asyncio.gather(copying, return_exceptions=True)
                raise

    def files(self) -> list[Staged]:
        if not self._folder.is_dir():
            return []
        return [Staged(path, path.stat().st_size) for path in sorted(self._folder.glob("*.gguf"))]

    async def clear(self, in_use: Callable[[], Collection[Path]]) -> list[Staged]:
        """Remove what no worker has open, or is about to, and what killed gateways have left half done. Returns what is gone."""
        async with self._turn:
            kept = in_use()
            gone = [staged for staged in self.files() if staged.path not in kept]
            for part in self._folder.glob("*.part"):
                if part.stat().st_mtime < time.time() - LEFTOVER_S:
                    part.unlink(missing_ok=True)
            for staged in gone:
                staged.path.unlink(missing_ok=True)
            return gone

    def _stage(self, path: Path) -> Path:
        try:
            stat = path.stat()
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if self._folder.is_symlink() or self._folder.stat().st_uid != os.getuid():
                raise ModelFileUnusable(f"{self._folder} belongs to somebody else; ram_disk cannot be used")
            stamp = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
            target = self._folder / f"{path.stem}-{stamp}.gguf"
            if target.is_file() and target.stat().st_size == stat.st_size:
                return target
            self._check_room(path, stat.st_size)
            part = target.with_suffix(f".{os.getpid()}.part")
            try:
                shutil.copyfile(path, part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        except OSError as exc:
            raise ModelFileUnusable(f"cannot stage {path.name} in {self._root}: {exc.strerror or exc}") from None
        return target

    def _check_room(self, path: Path, size: int) -> None:
        system = os.statvfs(self._root)
        free = system.f_bavail * system.f_frsize
        if size + MARGIN_BYTES > free:
            raise ModelFileUnusable(
                f"{path.name} does not fit on the RAM disk: it has {_mb(size)} MB, and {self._root} has {_mb(free)} MB free "
                f"of {_mb(system.f_blocks * system.f_frsize)} ({_mb(MARGIN_BYTES)} stay free); make {self._root} larger, "
                "call DELETE /admin/ram-disk, or set ram_disk: false"
            )


def _mb(size: int) -> int:
    return round(size / 2**20)
