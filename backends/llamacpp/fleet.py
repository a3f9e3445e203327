"""All workers of this machine: who may be in memory, who has to leave for whom, who is stopped for idleness.

Without limits everybody stays until idle. With them, a model that has no room waits while another one, idle if there is one, ends what
it is at work on and leaves; its own clients then wait in their turn, each for as long as its `max_wait_s` says.
"""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

from backends.errors import BackendUnavailable
from backends.llamacpp.eviction import Limits, leavers
from backends.llamacpp.fetching import Fetching
from backends.llamacpp.member import Member
from backends.llamacpp.ram_disk import RamDisk, Staged
from backends.llamacpp.sockets import Sockets
from backends.settings import FleetSettings, LlamaCppSettings

ROOM_TIMEOUT_S = 600.0
"""That a model waits for others to end what they are at work on."""


class Fleet:
    """
    Args:
        ram_disk: where models that want it are staged.
    """

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_restart: Callable[[str], None] = lambda name: None,
        ram_disk: RamDisk | None = None,
    ) -> None:
        self.sockets = Sockets()
        self.limits = Limits()
        # A backend that is no longer configured takes its own along.
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._ram_disk = ram_disk or RamDisk()
        self._staged: weakref.WeakKeyDictionary[Member, Path] = weakref.WeakKeyDictionary()
        self._turn = asyncio.Lock()
        self._sleep = sleep
        self._on_restart = on_restart
        self._keeper: asyncio.Task[None] | None = None

    def limit(self, settings: FleetSettings) -> None:
        """From now on; who is in memory stays until somebody needs the place."""
        memory = settings.max_memory_mb
        self.limits = Limits(settings.max_loaded, None if memory is None else memory * 2**20)

    def add(self, settings: LlamaCppSettings, path: Path, *, fetching: Fetching | None = None) -> Member:
        """
        Args:
            fetching: brings the file at the first start.
        """
        member = Member(settings, path, fleet=self, fetching=fetching, on_restart=self._on_restart)
        self._members.add(member)
        return member

    @property
    def members(self) -> list[Member]:
        return sorted(self._members, key=lambda member: member.name)

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep(), name="fleet")

    async def make_room(self, member: Member) -> None:
        """One at a time, in the order of their coming; those who have to leave end first what they are at work on.

        Raises:
            BackendUnavailable: it does not fit beside those who may not leave, or they do not end.
        """
        if not self._leavers(member):
            member.take_room()
            return
        async with self._turn:
            deadline_s = asyncio.get_running_loop().time() + ROOM_TIMEOUT_S
            while names := self._leavers(member):
                for other in self.members:
                    if other.name in names and other.has_room:
                        await other.unload(max(0.0, deadline_s - asyncio.get_running_loop().time()))
            member.take_room()

    def _leavers(self, member: Member) -> list[str]:
        present = [other.loaded() for other in self._members if other.has_room and other is not member]
        names = leavers(present, member.memory_bytes, self.limits)
        if names is None:
            raise BackendUnavailable(member.name, self._no_room(member))
        return names

    def _no_room(self, member: Member) -> str:
        pinned = sum(other.settings.pinned and other.has_room for other in self._members)
        limit = "no limit" if self.limits.memory_bytes is None else f"{self.limits.memory_bytes // 2**20} MB"
        return (
            f"there is no room for it: it needs about {member.memory_bytes // 2**20} MB, fleet.max_memory_mb is {limit}, "
            f"fleet.max_loaded is {self.limits.models or 'no limit'}, and {pinned} pinned models stay loaded"
        )

    async def place(self, member: Member) -> Path:
        if not member.settings.ram_disk:
            return member.path
        staged = self._staged[member] = await self._ram_disk.stage(member.path)
        return staged

    def staged(self) -> list[Staged]:
        return self._ram_disk.files()

    async def clear_ram_disk(self) -> list[Staged]:
        """Removes the files that no worker has open; says which."""
        return await self._ram_disk.clear(lambda: {path for member, path in self._staged.items() if member.has_room})

    async def _keep(self) -> None:
        while True:
            await self._sleep(1.0)
            for member in self.members:
                await member.stop_if_idle()
                await member.ask_status()

    async def aclose(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.gather(*(member.aclose() for member in self.members))
        self.sockets.remove()
