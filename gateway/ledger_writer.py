"""Moves the journal into the ledger: what this process writes, a second later; what processes left that died, at the start and
every now and then. A file goes when all of it is in the database and none of its requests is open. While the database does
not answer, the files wait.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from gateway.journal import Journal
from gateway.journal_reader import Reader
from gateway.settings_schema import LedgerSettings
from policies.errors import QuotaStoreDown
from policies.ledger import Ledger
from policies.ledger_sql import read_lines
from policies.quotas import Measure, Scope

T = TypeVar("T")

log = logging.getLogger("chasqui.ledger")

DAY_S = 86_400.0
EVERY_S = 1.0
ADOPT_EVERY = 10
"""Rounds between two searches for files of dead processes."""

PRUNE_EVERY_S = 3600.0
HISTORY_TIMEOUT_S = 2.0
LEFT_ALONE_S = 1.0
"""A database that did not answer is not asked again for so long: nobody else waits for it."""


UNREADABLE = "refused.lines"
"""Beside the journal: lines that the database will not take."""

Added = Callable[[Sequence[bytes]], None]
Lines = dict[str, bytes]


class LedgerWriter:
    """
    Args:
        clock: Unix seconds.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        settings: LedgerSettings,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._journal = journal
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._added: Added | None = None
        self._sleep = sleep
        self._readers: dict[Path, Reader] = {}
        self._lock = asyncio.Lock()
        self._prune_at_s = 0.0
        self._adopted = False
        """What dead processes had left at the start is in the ledger."""
        self._down_until_s = 0.0
        self.failing = False
        """The database did not take the last lines."""

    def tell(self, added: Added) -> None:
        """Of lines that are in the database now."""
        self._added = added

    async def run(self) -> None:
        rounds = 0
        while True:
            await self._sleep(EVERY_S)
            rounds += 1
            await self.attempt(adopt=rounds % ADOPT_EVERY == 0)

    async def attempt(self, *, adopt: bool) -> None:
        """One round; a failure is logged once, and the next round tries again."""
        try:
            await self.catch_up()
            if adopt:
                await self.adopt()
            await self._prune()
            if self.failing:
                log.info("the ledger is written again")
            self.failing = False
        except (SQLAlchemyError, OSError, TimeoutError) as exc:
            if not self.failing:
                log.error("the ledger cannot be written, the journal keeps everything meanwhile: %s", _cause(exc))
            self.failing = True
        except Exception:  # the edge of a background job: whatever it is, the next round tries again
            log.exception("the ledger's job stumbled")
            self.failing = True

    async def catch_up(self) -> None:
        """Until everything that this process has written so far is in the database.

        Raises:
            SQLAlchemyError, OSError
        """
        sizes = {path: size for path in self._journal.files if (size := self._size_of(path)) is not None}
        async with self._lock:
            for path, size in sizes.items():
                if path not in self._journal.files:
                    continue
                reader = self._readers.get(path)
                if reader is None:
                    reader = self._readers[path] = Reader(path)
                await self._take(reader, self._readers.values(), until=size)
            self._remove_done()

    async def adopt(self) -> None:
        """Take over what dead processes left; what had begun there and not ended is settled at what it held.

        Raises:
            SQLAlchemyError, OSError
        """
        async with self._lock:
            readers = self._left_behind()
            try:
                for reader in readers:
                    await self._take(reader, readers, until=reader.size)
                crashed = {name: line for reader in readers for name, line in reader.crashed()}
                if crashed:
                    await self._add(crashed, [])
                for reader in readers:
                    reader.path.unlink(missing_ok=True)
                self._adopted = True
                if readers:
                    log.info(
                        "%d journals of ended processes are in the ledger; %d requests were cut off",
                        len(readers),
                        len(crashed),
                    )
            finally:
                for reader in readers:
                    reader.close()

    async def used(
        self, scope: Scope, measure: Measure, *, since_s: float, whole: bool = False
    ) -> list[tuple[float, int]]:
        """Implements `quotas.History`."""
        return await self._told(self._used(scope, measure, since_s, whole=whole))

    async def recent(self, scope: Scope, measure: Measure, *, since_s: float, until_s: float) -> int:
        return await self._told(self._ledger.recent(scope, measure, since_s=since_s, until_s=until_s))

    async def _used(self, scope: Scope, measure: Measure, since_s: float, *, whole: bool) -> list[tuple[float, int]]:
        if not self._adopted:
            await self.adopt()
        await self.catch_up()
        return await self._ledger.used(scope, measure, since_s=since_s, now_s=self._clock(), whole=whole)

    async def _told(self, question: Coroutine[Any, Any, T]) -> T:
        """Not cancelled when it takes too long: a database that hangs takes its time for that as well.

        Raises:
            QuotaStoreDown
        """
        if self._clock() < self._down_until_s:
            question.close()
            raise QuotaStoreDown("the database did not say a moment ago what was used before")
        asking = asyncio.create_task(question)
        await asyncio.wait({asking}, timeout=HISTORY_TIMEOUT_S)
        if not asking.done():
            asking.add_done_callback(_retrieved)
            self._down_until_s = self._clock() + LEFT_ALONE_S
            raise QuotaStoreDown("the database does not say in time what was used before")
        try:
            return asking.result()
        except (SQLAlchemyError, OSError, TimeoutError) as exc:
            self._down_until_s = self._clock() + LEFT_ALONE_S
            raise QuotaStoreDown(f"what was used before cannot be read: {_cause(exc)}") from exc

    @property
    def backlog_bytes(self) -> int:
        """Of the journal, not in the ledger yet."""
        sizes = {path: path.stat().st_size for path in self._journal.folder.glob("*.log") if path.exists()}
        return sum(sizes.values()) - sum(reader.offset for path, reader in self._readers.items() if path in sizes)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    async def _take(self, reader: Reader, readers: Collection[Reader], *, until: int) -> None:
        """What the file says from where it was left. Its ends close requests that may have begun in any of the files."""
        while reader.offset < until and (piece := reader.next()) is not None:
            await self._add(piece.ends, piece.contents)
            reader.done(piece)
            for request_id in piece.ends:
                for one in readers:
                    one.open.pop(request_id, None)

    async def _add(self, ends: Lines, contents: list[bytes]) -> None:
        """A line that the database refuses must not keep the others out for ever: halves are tried until it is found."""
        if not ends and not contents:
            return
        try:
            await self._ledger.add(list(ends.values()), contents)
        except msgspec.ValidationError:
            ends = self._readable(ends)
            await self._ledger.add(list(ends.values()), contents)
        except (DataError, IntegrityError) as exc:
            if len(ends) + len(contents) == 1:
                self._set_aside(*ends.values(), *contents, why=exc)
                return
            names, half = list(ends), (len(ends) + 1) // 2
            await self._add({name: ends[name] for name in names[:half]}, contents[: len(contents) // 2])
            await self._add({name: ends[name] for name in names[half:]}, contents[len(contents) // 2 :])
            return
        if self._added is not None:
            self._added(list(ends.values()))

    def _readable(self, ends: Lines) -> Lines:
        """Those that this version of the program has written; the others are set aside."""
        good: Lines = {}
        for name, line in ends.items():
            try:
                read_lines([line])
                good[name] = line
            except msgspec.ValidationError as exc:
                self._set_aside(line, why=exc)
        return good

    def _set_aside(self, *lines: bytes, why: Exception) -> None:
        log.error("a line of the journal is not taken by the database and kept in %s: %s", UNREADABLE, _cause(why))
        with (self._journal.folder / UNREADABLE).open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))

    def _size_of(self, path: Path) -> int | None:
        """What comes later is not waited for. None: somebody has removed the file, and nobody has it open."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            if path == self._journal.growing:
                self._journal.close()  # the next line begins another
            reader = self._readers.get(path)
            if reader is not None:
                return reader.size
            log.error("%s was removed before it was read; what was in it is not in the ledger", path)
            self._journal.forget(path)
            return None

    def _left_behind(self) -> list[Reader]:
        readers = []
        for path in sorted(self._journal.folder.glob("*.log")):
            if path in self._journal.files:
                continue
            try:
                readers.append(Reader(path, lock=True))
            except OSError:  # of a living process, or another one is taking it over
                continue
        return readers

    def _remove_done(self) -> None:
        """Files that nothing more comes into, when all that is in them is in the ledger."""
        for path, reader in list(self._readers.items()):
            if path != self._journal.growing and not reader.open and reader.at_end:
                path.unlink(missing_ok=True)
                reader.close()
                self._journal.forget(path)
                del self._readers[path]

    async def _prune(self) -> None:
        now_s = self._clock()
        if now_s < self._prune_at_s:
            return
        gone = await self._ledger.prune(
            rows_before_s=now_s - self._settings.retention_days * DAY_S,
            hours_before_s=now_s - self._settings.usage_days * DAY_S,
            now_s=now_s,
        )
        self._prune_at_s = now_s + PRUNE_EVERY_S
        if gone:
            log.info("%d requests older than %g days left the ledger", gone, self._settings.retention_days)


def _retrieved(task: "asyncio.Task[object]") -> None:
    if not task.cancelled():
        task.exception()


def _cause(exc: BaseException) -> object:
    return getattr(exc, "orig", None) or exc
