"""The collections that this process has in memory, each in step with the database."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.errors import BackendError
from retrieval.catalog import Catalog, Stored
from retrieval.documents import Documents
from retrieval.embedding import Embedder
from retrieval.files import Files
from retrieval.indexes import IndexFiles
from retrieval.lexical import LexicalIndex
from retrieval.retrievals import Retrievals
from retrieval.view import View

log = logging.getLogger("chasqui.collections")

MAX_VIEWS = 256
"""Collections in memory; the longest unused one goes."""

POLL_S = 0.5
TIDY_S = 30.0


@dataclass(slots=True)
class _Shelved:
    view: View
    files: IndexFiles
    embedder: Embedder
    generation: int = -1
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Library:
    """
    Args:
        folder: of saved indexes.
    """

    def __init__(
        self,
        database: AsyncEngine,
        catalog: Catalog,
        documents: Documents,
        files: Files,
        lexical: LexicalIndex,
        retrievals: Retrievals,
        *,
        folder: Path,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.database = database
        self.catalog = catalog
        self.documents = documents
        self.files = files
        self.lexical = lexical
        self.retrievals = retrievals
        self._folder = folder
        self._sleep = sleep
        self.wanted = asyncio.Event()
        """There is something to build."""
        self._shelved: OrderedDict[int, _Shelved] = OrderedDict()

    async def view(self, stored: Stored, embedder: Embedder) -> View:
        """As the database was when `stored` was read, or later.

        Raises:
            BackendError: nobody knows which model makes the vectors now.
            SQLAlchemyError
        """
        shelved = self._shelved.get(stored.id)
        if shelved is None:
            files = IndexFiles(self._folder, stored.public_id)
            shelved = _Shelved(View(stored.id, self.documents, files), files, embedder)
            self._shelved[stored.id] = shelved
            while len(self._shelved) > MAX_VIEWS:
                self._shelved.popitem(last=False)
        self._shelved.move_to_end(stored.id)
        shelved.embedder = embedder
        await self._refresh(shelved, stored.generation)
        return shelved.view

    async def _refresh(self, shelved: _Shelved, generation: int) -> None:
        identity = await shelved.embedder.backend.identity()
        if shelved.generation >= generation and shelved.view.embedding == identity:
            return
        async with shelved.turn:
            if shelved.generation >= generation and shelved.view.embedding == identity:
                return
            self.lexical.forget(shelved.view.collection)
            await shelved.view.sync(identity)
            shelved.generation = generation

    def loaded(self, collection: int) -> View | None:
        shelved = self._shelved.get(collection)
        return shelved.view if shelved is not None else None

    def named(self, public_id: str) -> View | None:
        """Where it is in memory."""
        return next((one.view for one in self._shelved.values() if one.files.name == public_id), None)

    async def run(self) -> None:
        """What other requests and gateways change is taken over before somebody asks; what has ended is cleared away."""
        until_tidy_s = 0.0
        while True:
            try:
                await self.poll()
                if until_tidy_s <= 0:
                    await self.tidy()
                    until_tidy_s = TIDY_S
            except (SQLAlchemyError, OSError, BackendError) as exc:
                log.warning("the collections cannot be looked after now: %s", exc)
            except Exception:  # the edge of a background job: a bug in it must not stop it for good
                log.exception("the collections cannot be looked after now")
            await self._sleep(POLL_S)
            until_tidy_s -= POLL_S

    async def poll(self) -> None:
        if not self._shelved:
            return
        generations = await self.catalog.generations()
        for id_, shelved in list(self._shelved.items()):
            if id_ not in generations:
                self._shelved.pop(id_, None)
                await asyncio.to_thread(shelved.files.delete)
            elif generations[id_] > shelved.generation:
                await self._refresh(shelved, generations[id_])

    async def tidy(self) -> None:
        """Delete what has expired, and the remains of what was interrupted; save indexes."""
        for stored in await self.catalog.expired():
            log.info("the collection '%s' (%s) has expired and is deleted", stored.name, stored.public_id)
            await self.catalog.delete(stored)
        await self.files.sweep()
        await self.documents.sweep()
        await self.retrievals.sweep()
        await asyncio.to_thread(self._clear, await self.catalog.public_ids())
        await self.save()

    def _clear(self, known: set[str]) -> None:
        """Index files of collections that were deleted while they were not in memory."""
        there = {path.name.partition(".")[0] for path in self._folder.glob("vs_*.*")}
        for name in there - known:
            IndexFiles(self._folder, name).delete()

    async def save(self) -> None:
        for shelved in list(self._shelved.values()):
            await shelved.view.save()
