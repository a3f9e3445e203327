"""Vectors by key: the last used ones in memory, all of them in a store, written in batches behind the requests.

A cache: whatever is wrong with it, the answer is computed instead, the fault is logged and counted, and nothing wrong is served. What
was not written when the process is killed is computed again.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError, StatementError

from retrieval.vector_memory import CachedVector, VectorMemory
from retrieval.vector_store import Entry, Text, VectorStore

log = logging.getLogger("chasqui.embeddings")

WRITE_EVERY_S = 0.2
WRITE_AT = 1000
"""Entries that wait to be written before anybody waits for the time."""

MAX_PENDING = 20_000
MAX_PENDING_BYTES = 64 * 2**20
"""While the store does not take any, more are not kept for it."""

READ_TIMEOUT_S = 1.0
"""A store that answers later than this is slower than most models; the vectors are computed."""

LOG_EVERY_S = 60.0


class EmbeddingCache:
    """
    Args:
        keep_text: False: those that were kept are removed from the store.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        store: VectorStore,
        memory: VectorMemory,
        *,
        keep_text: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.memory = memory
        self.faults: Counter[str] = Counter()
        """read, write, damaged, dropped."""
        self.hits: Counter[str] = Counter()
        """By model, since the start."""
        self.misses: Counter[str] = Counter()
        self._clock = clock
        self._keep_text = keep_text
        self._opened = False
        self._pending_bytes = 0
        self._pending: dict[bytes, Entry] = {}
        self._texts: dict[tuple[str, bytes], Text] = {}
        self._used: set[bytes] = set()
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._logged: dict[str, float] = {}

    async def open(self) -> None:
        """Make the tables. Without them, everything is computed, and kept in memory; each flush tries again."""
        try:
            await self.store.open()
            if not self._keep_text:
                await self.store.forget_texts()
            self._opened = True
        except (SQLAlchemyError, OSError) as exc:
            self._fault("write", f"cannot be opened: {exc}")

    async def get(self, keys: Sequence[bytes], model: str) -> dict[bytes, CachedVector]:
        """What is known. Everything else has to be computed."""
        distinct = list(dict.fromkeys(keys))
        found: dict[bytes, CachedVector] = {}
        for key in distinct:
            known = self.recall(key)
            if known is not None:
                found[key] = known
        missing = [key for key in distinct if key not in found]
        if missing:
            found |= await self._read(missing)
        self.hits[model] += sum(key in found for key in keys)
        self.misses[model] += sum(key not in found for key in keys)
        return found

    def recall(self, key: bytes) -> CachedVector | None:
        """What is known without asking the store."""
        known = self.memory.get(key)
        return self._pending[key].value if known is None and key in self._pending else known

    async def _read(self, keys: Sequence[bytes]) -> Mapping[bytes, CachedVector]:
        damaged = self.store.damaged
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                found, unused = await self.store.get(keys)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with it, the vectors are computed
            self._fault("read", f"cannot be read, vectors are computed: {exc or 'it takes too long'}")
            return {}
        if self.store.damaged > damaged:
            self._fault("damaged", "holds a damaged vector, which is computed again", self.store.damaged - damaged)
        for key, value in found.items():
            self.memory.put(key, value)
        self._used.update(unused)
        return found

    def put(self, entries: Iterable[Entry]) -> None:
        """At once for everybody in this process; in the store a moment later."""
        for entry in entries:
            self.memory.put(entry.key, entry.value)
            if self._has_room(entry.value.vector.nbytes):
                self._pending[entry.key] = entry
        if len(self._pending) >= WRITE_AT:
            self._wake.set()

    def keep(self, texts: Iterable[Text]) -> None:
        """So that they can be searched by those who share their owner."""
        for text in texts:
            # PostgreSQL has no place for NUL in a text.
            if (text.owner, text.key) not in self._texts and "\0" not in text.text and self._has_room(len(text.text)):
                self._texts[text.owner, text.key] = text

    def _has_room(self, size: int) -> bool:
        """For one more that waits."""
        if len(self._pending) + len(self._texts) >= MAX_PENDING or self._pending_bytes + size > MAX_PENDING_BYTES:
            self._fault("dropped", "does not take what is computed; it is kept in memory only")
            return False
        self._pending_bytes += size
        return True

    async def flush(self) -> bool:
        """Write what waits. False: the store did not take it; it goes on waiting."""
        async with self._writing:
            entries, texts, used = list(self._pending.values()), list(self._texts.values()), self._used
            if not (entries or texts or used):
                return True
            if not self._opened:
                await self.open()
            try:
                await self._write(entries, texts, used)
                await self.store.evict()
            except (SQLAlchemyError, OSError) as exc:
                self._fault("write", f"cannot be written: {exc}")
                return False
            self._written(entries, texts)
            return True

    async def _write(self, entries: Sequence[Entry], texts: Sequence[Text], used: Iterable[bytes] = ()) -> None:
        """A row that no database takes is left out, the others are written.

        Raises:
            SQLAlchemyError, OSError: of the store as a whole.
        """
        try:
            await self.store.put(entries, texts, used)
        except (DataError, OverflowError, ValueError, TypeError, StatementError) as exc:
            if isinstance(exc, DBAPIError) and not isinstance(exc, DataError):
                raise
            if len(entries) + len(texts) <= 1:
                self._fault("dropped", f"leaves out what cannot be written: {type(exc).__name__}")
                return
            for part in (entries[: len(entries) // 2], entries[len(entries) // 2 :]):
                if part:
                    await self._write(part, [])
            for kept in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
                if kept:
                    await self._write([], kept)

    def _written(self, entries: Sequence[Entry], texts: Sequence[Text]) -> None:
        """They wait no more, but for those that came again meanwhile, which does no harm."""
        for entry in entries:
            self._pending.pop(entry.key, None)
        for text in texts:
            self._texts.pop((text.owner, text.key), None)
        self._used = set()
        self._pending_bytes = sum(entry.value.vector.nbytes for entry in self._pending.values())
        self._pending_bytes += sum(len(text.text) for text in self._texts.values())

    async def run(self) -> None:
        """Writes for as long as the cache is in use, and once more at the end."""
        try:
            while True:
                try:
                    async with asyncio.timeout(WRITE_EVERY_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                if not await self.flush():
                    await asyncio.sleep(1.0)
        finally:
            await self.flush()

    async def forget(
        self, *, model: str | None = None, older_than_s: int | None = None, prefix: str | None = None
    ) -> int:
        """Delete what all of these are true of, here and in the store.

        Raises:
            SQLAlchemyError
        """
        if not await self.flush():  # what cannot be written must not come back when the store does
            self._pending, self._texts, self._used, self._pending_bytes = {}, {}, set(), 0
        gone = await self.store.delete(model=model, older_than_s=older_than_s, prefix=prefix)
        self.memory.clear()
        return gone

    @property
    def waiting(self) -> int:
        """Entries that are not in the store yet."""
        return len(self._pending)

    def _fault(self, kind: str, words: str, count: int = 1) -> None:
        self.faults[kind] += count
        now = self._clock()
        if now - self._logged.get(kind, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged[kind] = now
            log.error("the embedding cache %s", words.partition("\n")[0])
