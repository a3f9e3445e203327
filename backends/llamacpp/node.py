"""A worker on another machine: a relay like any other, which also tells what it does and changes its model."""

import asyncio
from typing import Any

import msgspec

from backends.errors import BackendError
from backends.relay import Relay

STATUS_TIMEOUT_S = 3.0


class Node(Relay):
    async def describe(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                return msgspec.json.decode(await self.get("/status"), type=dict[str, Any])
        except TimeoutError:
            return {"status": "failed", "error": f"no answer within {STATUS_TIMEOUT_S:g} s"}
        except (BackendError, msgspec.MsgspecError) as exc:
            return {"status": "failed", "error": str(exc)}

    async def load(self) -> None:
        await self.post(self._site.prefix + "/load", b"{}")

    async def unload(self) -> None:
        await self.post(self._site.prefix + "/unload", b"{}")

    async def swap(self, model: str) -> None:
        await self.post(self._site.prefix + "/swap", msgspec.json.encode({"model": model}))
