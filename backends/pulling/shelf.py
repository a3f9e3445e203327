"""The folder of model files, `home/models`. Several programs and machines may share it: a file has its name only when it is whole,
and one program at a time fetches it.

    models/NAME.gguf                  whole, its digest known
    models/.origins/NAME.gguf.json    where it came from, and its digest; a file that somebody put here by hand has none
    models/.parts/NAME.gguf           what has arrived of it, `.json` beside it (see `part.py`), `.lock` held by whoever fetches
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from backends.durable import sync_folder
from backends.errors import ModelFileUnusable
from backends.pulling.part import BLOCK
from backends.pulling.room import check_room, disk_free
from backends.pulling.source import MOST_PARTS, NAME, PART, Source

LOOK_AGAIN_S = 0.5


class Origin(msgspec.Struct):
    """Of a file that was pulled."""

    source: str
    """As shown: without what may be secret."""
    key: str
    """Of the source."""
    sha256: str
    size_bytes: int
    verified: bool
    """Its digest was known before it was here, and not only reckoned from what came."""
    pulled_at: float
    """Unix seconds."""


class Shelf:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """
        Raises:
            ModelFileUnusable: no name for a file here.
        """
        if not NAME.fullmatch(name):
            raise ModelFileUnusable(
                f"'{name[:100]}' is no name for a model file: letters, digits, . _ -, and .gguf at its end"
            )
        return self.folder / name

    def files(self) -> list[Path]:
        """Those that are whole, by name; also in folders below, where somebody has put them there."""
        if not self.folder.is_dir():
            return []
        return sorted(
            path
            for path in self.folder.rglob("*.gguf")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self.folder).parts)
        )

    def origin(self, name: str) -> Origin | None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(self._origin_path(name).read_bytes(), type=Origin)
        return None

    def find(self, source: Source) -> Path | None:
        """The file that was pulled from there; of a split one, the first."""
        for path in self.files():
            origin = self.origin(path.name) if path.parent == self.folder else None
            if origin is not None and self.is_from(source, path, origin):
                return path
        return None

    @staticmethod
    def is_from(source: Source, path: Path, origin: Origin) -> bool:
        """As far as that can be said without reading all of it."""
        same = origin.key == source.key and source.sha256 in (None, origin.sha256)
        return same and path.stat().st_size == origin.size_bytes

    def part_path(self, name: str) -> Path:
        return self.folder / ".parts" / name

    def _origin_path(self, name: str) -> Path:
        return self.folder / ".origins" / f"{name}.json"

    def place(self, part: Path, name: str, origin: Origin) -> Path:
        """Gives a file that is whole and on the disk its name. Its origin is there first: a file without one looks like any other."""
        target = self.path(name)
        record = self._origin_path(name)
        record.parent.mkdir(parents=True, exist_ok=True)
        draft = record.with_name(f".{record.name}.{os.getpid()}")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(origin)))
        draft.replace(record)
        part.replace(target)
        sync_folder(self.folder)
        return target

    def remove(self, name: str) -> int:
        """With what was begun of it; of a model in several files all of them. How many bytes are free for it.

        Raises:
            ModelFileUnusable: nothing has that name, or somebody fetches it now.
        """
        freed = [self._removed(part.name) for part in files_of_model(self.path(name))]
        if not any(found for found, _ in freed):
            raise ModelFileUnusable(f"there is no {name} in {self.folder}; `chasqui models list` shows what there is")
        return sum(size for _, size in freed)

    def _removed(self, name: str) -> tuple[bool, int]:
        """Whether there was anything, and its bytes."""
        lock_path = self.part_path(f"{name}.lock")
        there = [
            path for path in (self.path(name), self.part_path(name), self.part_path(f"{name}.json")) if path.is_file()
        ]
        with contextlib.ExitStack() as stack:
            if lock_path.is_file() and not _locked(stack.enter_context(lock_path.open("ab")).fileno()):
                raise ModelFileUnusable(f"{name} is being fetched by another program; stop that one first")
            size = sum(path.stat().st_size for path in there)
            for path in (*there, self._origin_path(name)):
                path.unlink(missing_ok=True)
        return bool(there), size

    @asynccontextmanager
    async def claimed(self, name: str, *, say: Callable[[str], None]) -> AsyncIterator[None]:
        """Nobody else fetches this file meanwhile, in any program that shares the folder. Who has died holds nothing."""
        path = self.part_path(f"{name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as lock:
            waiting = False
            while not _locked(lock.fileno()):
                if not waiting:
                    say(f"{name} is being fetched by another program; waiting for it")
                waiting = True
                await asyncio.sleep(LOOK_AGAIN_S)
            yield

    def copy(self, source: Path, part: Path) -> str:
        """A file of this machine, into a part. Its digest.

        Raises:
            ModelFileUnusable: it is none that can be used, or there is no room for it.
        """
        if not source.is_file():
            raise ModelFileUnusable(f"there is no file {source}")
        check_room(f"{source}", source.stat().st_size, part.parent, disk_free(part.parent))
        with source.open("rb") as reader:
            if reader.read(4) != b"GGUF":
                raise ModelFileUnusable(f"{source} is no GGUF file")
            reader.seek(0)
            with part.open("wb") as writer:
                shutil.copyfileobj(reader, writer, BLOCK)
                writer.flush()
                os.fsync(writer.fileno())
        return digest_of(part)


def files_of_model(path: Path) -> list[Path]:
    """Itself; of a model that is split, all that would belong to it, in order."""
    split = PART.fullmatch(path.name)
    if split is None or not 1 <= int(split["count"]) <= MOST_PARTS:
        return [path]
    return [
        path.with_name(f"{split['stem']}-{number:05d}-of-{split['count']}.gguf")
        for number in range(1, int(split["count"]) + 1)
    ]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def digest_of(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """sha256, in hex.

    Args:
        progress: told the bytes that were read so far.
    """
    digest, read = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            read += len(block)
            progress(read)
    return digest.hexdigest()
