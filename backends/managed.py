"""Backends whose models can be taken in and out of memory: workers, here and on other machines."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Managed(Protocol):
    async def describe(self) -> dict[str, Any]:
        """What it is at work on and with what; for people, who read it in `/admin/backends`."""
        ...

    async def load(self) -> None:
        """Into memory, now.

        Raises:
            BackendError
        """
        ...

    async def unload(self) -> None:
        """Out of memory, once the requests that it is at work on have ended; others wait, and load it again."""
        ...

    async def swap(self, model: str) -> None:
        """Another file in its place, while clients wait. Until the gateway, or the worker, is started again.

        Raises:
            InvalidRequest: there is no such file.
            BackendError: it does not load; the next request gets the old one.
        """
        ...
