"""Who may read which collection: the one door to all of them, for chats, searches, files and lists alike."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from policies.errors import NotThere
from policies.roles import ADMIN, Caller
from retrieval.catalog import Catalog, Page, Stored
from retrieval.files import Files, Uploaded
from retrieval.ids import declared_id
from retrieval.settings import CollectionSettings


class Access:
    """
    Args:
        declared: the collections of the configuration in force.
        clock: Unix seconds.
    """

    def __init__(
        self,
        catalog: Catalog,
        files: Files,
        declared: Iterable[CollectionSettings],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._files = files
        self.declared: Mapping[str, CollectionSettings] = {declared_id(one.name): one for one in declared}
        self._names = {one.name: id_ for id_, one in self.declared.items()}
        self._clock = clock

    async def collection(self, caller: Caller, name: str) -> Stored:
        """By id, or by its name in the configuration.

        Raises:
            NotThere: or not for this caller, who is told the same.
        """
        stored = await self._catalog.get(self._names.get(name, name)) if "\0" not in name else None
        if stored is None or not self.sees(caller, stored):
            raise NotThere("vector store", name)
        return stored

    async def all(self, caller: Caller, names: Iterable[str]) -> list[Stored]:
        """Each once, in order.

        Raises:
            NotThere
        """
        found = {}
        for name in names:
            stored = await self.collection(caller, name)
            found[stored.id] = stored
        return list(found.values())

    async def listed(self, caller: Caller, page: Page) -> list[Stored]:
        """One more than the page's limit, where there are more."""
        declared = [id_ for id_, one in self.declared.items() if caller.reads(name=one.name, id_=id_, owner="")]
        visible: list[Stored] = []
        while len(visible) <= page.limit:  # a narrowed key sees less than its role
            found = await self._catalog.listed(page, owner=self.owner(caller), declared=declared)
            visible += [stored for stored in found if self.sees(caller, stored)]
            if len(found) <= page.limit:
                break
            page = replace(page, after=found[-1].public_id)
        return visible[: page.limit + 1]

    async def file(self, caller: Caller, id_: str) -> Uploaded:
        """
        Raises:
            NotThere: or not of this caller's role.
        """
        uploaded = await self._files.get(id_) if "\0" not in id_ else None
        if uploaded is None or self.owner(caller) not in (None, uploaded.owner):
            raise NotThere("file", id_)
        if self.uploader(caller) not in (None, uploaded.key):
            raise NotThere("file", id_)
        return uploaded

    @staticmethod
    def uploader(caller: Caller) -> str | None:
        """Whose uploads a caller gets: a key that is narrowed to some collections, its own; None: all of the role's."""
        return caller.key_id if caller.narrowed_to_collections else None

    def sees(self, caller: Caller, stored: Stored) -> bool:
        if stored.declared and stored.public_id not in self.declared:
            return False  # of a configuration that is no more
        if stored.expired(self._clock()):
            return False
        return caller.reads(name=stored.name, id_=stored.public_id, owner=stored.owner)

    @staticmethod
    def owner(caller: Caller) -> str | None:
        """Whose things a caller gets: its role's; None: those of all."""
        return None if caller.role.name == ADMIN.name else caller.role.name
