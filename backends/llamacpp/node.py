"""A worker on another machine: a relay like any other, which also tells what it does and changes its model."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec

from backends.base import Answer, Call, Event
from backends.errors import BackendError, BackendTimeout, BackendUnavailable, UpstreamBroken
from backends.llamacpp.scope import scoped
from backends.relay import Relay

STATUS_TIMEOUT_S = 3.0
UNAVAILABLE = 503


ORDER_TIMEOUT_S = 300.0
"""For the requests that it is at work on to end, and for a model to be loaded."""


class Node(Relay):
    sharing = "role"
    """`prefix_sharing`."""

    async def complete(self, call: Call) -> Answer:
        return await super().complete(scoped(call, self.sharing))

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        async with aclosing(super().stream(scoped(call, self.sharing))) as events:
            async for event in events:
                yield event

    async def describe(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                told = msgspec.json.decode(await self.get("/status"), type=dict[str, Any])
                return {"status": "ready"} | told
        except TimeoutError:
            return {"status": "failed", "error": f"no answer within {STATUS_TIMEOUT_S:g} s"}
        except (BackendError, msgspec.MsgspecError) as exc:
            return {"status": "failed", "error": str(exc)}

    async def load(self) -> None:
        await self._order("/load", {})

    async def unload(self) -> None:
        await self._order("/unload", {})

    async def swap(self, model: str) -> None:
        await self._order("/swap", {"model": model})

    async def _order(self, path: str, body: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(ORDER_TIMEOUT_S):
                await self.post(self._site.prefix + path, msgspec.json.encode(body))
        except TimeoutError:
            raise BackendTimeout(self.name, "total", ORDER_TIMEOUT_S) from None
        except UpstreamBroken as exc:
            if exc.status != UNAVAILABLE:
                raise
            raise BackendUnavailable(self.name, str(exc).partition(f"status {UNAVAILABLE}: ")[2]) from None
