"""Where workers listen: private folders with short paths, which go away with their gateway, however it ends."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

LEFTOVER_S = 60.0


class Sockets:
    """A private directory (0700) with short paths: a Unix socket's name may have 107 bytes."""

    def __init__(self) -> None:
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        parent = runtime if runtime and os.access(runtime, os.W_OK) and len(runtime) < 60 else None
        _remove_leftovers(Path(parent or tempfile.gettempdir()))
        self._directory = Path(tempfile.mkdtemp(prefix="chasqui-", dir=parent))
        self._lock: int | None = _locked(self._directory)
        self._count = 0

    def new(self) -> Path:
        self._count += 1
        return self._directory / f"{self._count}.sock"

    def remove(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_leftovers(parent: Path) -> None:
    """Folders of our own gateways that were killed: nobody holds their lock. A young one may be about to take it."""
    oldest_s = time.time() - LEFTOVER_S
    for folder in parent.glob("chasqui-*"):
        with contextlib.suppress(OSError):
            stat = folder.lstat()
            if folder.is_symlink() or stat.st_uid != os.getuid() or stat.st_mtime > oldest_s:
                continue
            lock = _locked(folder)
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock until it is closed; holds across containers, where process ids mean nothing.

    Raises:
        OSError: somebody else holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
