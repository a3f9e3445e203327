"""A collection in memory: the vectors of the documents that can be found, and their attributes, brought in step with the database.

`sync` compares what is here with what is there and takes over the difference, so it is all that is needed at a start, after a
change of our own, and after one of another gateway. A document never changes: a new version is another one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from retrieval.documents import Documents, Held
from retrieval.filters import AttributeTable
from retrieval.index import EXACT_UPTO, Keys, VectorIndex, Vectors
from retrieval.index_exact import ExactIndex
from retrieval.index_usearch import UsearchIndex
from retrieval.indexes import IndexFiles
from retrieval.tables import ChunkId, DocumentId

log = logging.getLogger("chasqui.collections")

DOCUMENTS_AT_ONCE = 200
PART_BITS = 8
"""A key is a chunk's id and the number of one of its vectors."""

MAX_PARTS = 1 << PART_BITS


class View:
    """
    Args:
        files: where a large index is kept; None: it is made at each start.
    """

    def __init__(self, collection: int, documents: Documents, files: IndexFiles | None = None) -> None:
        self.collection = collection
        self.embedding = ""
        """Identity of the model whose vectors these are."""
        self.elsewhere = 0
        """Documents whose vectors another model has made: they are found by words alone until they are built anew."""
        self._documents = documents
        self._files = files
        self._turn = asyncio.Lock()
        self._index: VectorIndex = ExactIndex()
        self._keys: dict[DocumentId, Keys] = {}
        self._prints: dict[DocumentId, int] = {}
        self._attributes = AttributeTable({})
        self._within: dict[frozenset[DocumentId], Keys] = {}
        self._parts: dict[ChunkId, int] = {}
        """Of chunks with more than one vector, how many."""
        self._unsaved = 0

    def __len__(self) -> int:
        """Vectors."""
        return len(self._index)

    @property
    def documents(self) -> int:
        return len(self._keys) + self.elsewhere

    async def sync(self, embedding: str) -> None:
        """
        Args:
            embedding: identity of the model that makes the vectors of questions now.

        Raises:
            SQLAlchemyError
        """
        async with self._turn:
            if embedding != self.embedding:
                self._keys, self._parts, self._index, self.embedding = {}, {}, ExactIndex(), embedding
                await self._load()
            live = await self._documents.live(self.collection)
            mine = {id_ for id_, one in live.items() if one.embedding == embedding}
            self.elsewhere = len(live) - len(mine)
            gone = {id_ for id_ in self._keys if id_ not in mine or self._prints[id_] != live[id_].print}
            if gone:
                self._index.remove(np.concatenate([self._keys.pop(id_) for id_ in gone]))
                self._unsaved += len(gone)
            new = sorted(mine - self._keys.keys())
            self._prints = {id_: one.print for id_, one in live.items()}
            for start in range(0, len(new), DOCUMENTS_AT_ONCE):
                await self._add(await self._documents.held(new[start : start + DOCUMENTS_AT_ONCE]))
            if isinstance(self._index, UsearchIndex) and self._index.worn:
                self._index = await asyncio.to_thread(self._index.renewed)
            self._attributes = AttributeTable({id_: one.attributes for id_, one in live.items()})
            self._within.clear()

    async def _load(self) -> None:
        saved = await asyncio.to_thread(self._files.load, embedding=self.embedding) if self._files is not None else None
        if saved is not None:
            self._index, self._keys, self._prints = saved.index, saved.keys, saved.prints
            for own in saved.keys.values():
                self._note_parts(own)
            self._unsaved = 0

    async def _add(self, held: Sequence[Held]) -> None:
        held = [one for one in held if len(one.chunk_ids)]
        if not held:
            return
        keys = [keys_of(one.chunk_ids, one.parts) for one in held]
        all_keys, vectors = np.concatenate(keys), np.concatenate([one.vectors for one in held])
        if isinstance(self._index, ExactIndex) and len(self._index) + len(all_keys) > EXACT_UPTO:
            await self._grow()
        if isinstance(self._index, ExactIndex):
            self._index.add(all_keys, vectors)
        else:
            await _whole(self._index.add, all_keys, vectors)  # a graph takes its time
        self._keys |= {one.id: own for one, own in zip(held, keys, strict=True)}
        self._note_parts(all_keys)
        self._unsaved += len(held)

    def _note_parts(self, keys: Keys) -> None:
        for key in keys[(keys & np.uint64(MAX_PARTS - 1)) > 0].tolist():
            id_ = key >> PART_BITS
            self._parts[id_] = max(self._parts.get(id_, 1), (key & (MAX_PARTS - 1)) + 1)

    async def _grow(self) -> None:
        assert isinstance(self._index, ExactIndex)
        grown = UsearchIndex()
        keys, vectors = self._index.all()
        await _whole(grown.add, keys, vectors)
        self._index = grown

    async def save(self) -> bool:
        """Write a large index to its files, if it has changed since. Whether it was written."""
        async with self._turn:
            if self._files is None or not self._unsaved or not isinstance(self._index, UsearchIndex):
                return False
            if not len(self._index):
                return False
            index, keys, prints = self._index, dict(self._keys), dict(self._prints)
            about = {"embedding": self.embedding, "dimensions": self.dimensions}
            try:
                await asyncio.to_thread(self._files.save, index, keys, prints, **about)  # type: ignore[arg-type]
            except OSError as exc:
                log.warning(
                    "the index of collection %d cannot be saved, it is made anew next time: %s", self.collection, exc
                )
                return False
            self._unsaved = 0
            return True

    @property
    def dimensions(self) -> int:
        first = next(iter(self._keys.values()), None)
        if first is None:
            return 0
        return int(self._index.get(first[:1])[1].shape[1])

    def allowed(self, condition: object) -> frozenset[DocumentId]:
        """
        Raises:
            FilterInvalid
        """
        return self._attributes.matching(condition)

    def nearest(
        self, vector: Vectors, k: int, *, within: frozenset[DocumentId] | None = None
    ) -> list[tuple[ChunkId, float]]:
        """At most `k` chunks, best first; of a chunk with several vectors the best one counts."""
        if within is not None and not within:
            return []
        keys = self._keys_within(within) if within is not None else None
        wanted = k
        while True:
            found = self._index.search(vector, wanted, within=keys)
            best: dict[ChunkId, float] = {}
            for key, score in zip(found.keys.tolist(), found.scores.tolist(), strict=True):
                best.setdefault(key >> PART_BITS, score)
            if len(best) >= k or len(found.keys) < wanted:
                return list(best.items())[:k]
            wanted *= 2

    def similarity(self, vector: Vectors, ids: Iterable[ChunkId]) -> dict[ChunkId, float]:
        """Cosine with the chunks that are here, by the best of their vectors."""
        all_parts = ((id_, part) for id_ in ids for part in range(self._parts.get(id_, 1)))
        keys = np.asarray([id_ << PART_BITS | part for id_, part in all_parts], np.uint64)
        there, vectors = self._index.get(keys)
        best: dict[ChunkId, float] = {}
        if len(there):
            for key, score in zip(there.tolist(), (vectors @ vector).tolist(), strict=True):
                id_ = key >> PART_BITS
                best[id_] = max(score, best.get(id_, -1.0))
        return best

    def _keys_within(self, documents: frozenset[DocumentId]) -> Keys:
        """Sorted. The same filter is often asked again."""
        known = self._within.get(documents)
        if known is None:
            own = [self._keys[id_] for id_ in documents if id_ in self._keys]
            known = np.sort(np.concatenate(own)) if own else np.zeros(0, np.uint64)
            if len(self._within) >= 64:
                self._within.clear()
            self._within[documents] = known
        return known


async def _whole(work: Callable[..., None], *arguments: Any) -> None:
    """In a thread, to its end even if the caller is cancelled: nobody else may touch the index before."""
    task = asyncio.create_task(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def keys_of(chunk_ids: Sequence[ChunkId], parts: Sequence[int]) -> Keys:
    return (np.asarray(chunk_ids, np.uint64) << np.uint64(PART_BITS)) | np.asarray(parts, np.uint64)
