"""Many clients at once, some of whom leave, against an upstream that fails now and then. What each of them saw is kept."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from tests.faults.upstream import Line, Received, answer_of, chunk_of

CHAT = "/v1/chat/completions"

FAILURES = ("error", "cut", "cut-stream")


def moody(request: Received, line: Line) -> None:
    """An upstream that does what the request's `user` says."""
    mood, stream = request.json.get("user", ""), request.json.get("stream", False)
    if mood == "error":
        line.answer(500, b'{"error": {"message": "no", "type": "x", "code": null, "param": null}}')
    elif mood == "cut":
        line.reset()
    elif stream:
        line.start_stream()
        for word in ("one ", "two ", "three"):
            line.event(chunk_of(word))
        if mood == "cut-stream":
            line.reset()
            return
        line.event(chunk_of("", finish="stop"))
        line.event({"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
        line.event("[DONE]")
        line.end_stream()
    else:
        line.answer(200, answer_of("one two three", usage=USAGE))


USAGE = {"prompt_tokens": 11, "completion_tokens": 9, "total_tokens": 20}


@dataclass
class Seen:
    statuses: Counter[int] = field(default_factory=Counter)
    """Of the answers' heads."""
    complete: list[str] = field(default_factory=list)
    """The ids of the answers that arrived whole."""
    left: int = 0
    """Requests that their clients did not wait for."""
    lost: int = 0
    """Connections that ended under a client."""


@dataclass
class Crowd:
    """
    Args:
        urls: gateways; each client stays with one.
        leaving, failing: shares of the requests.
    """

    urls: Sequence[str]
    key: str
    clients: int = 64
    leaving: float = 0.0
    failing: float = 0.0
    max_tokens: int = 10
    seed: int = 1
    until_refused: bool = True
    """A client goes home when it is told 429; else when its requests are through."""
    requests_each: int = 10**6
    seen: Seen = field(default_factory=Seen)
    going_on: bool = True

    async def ask(self) -> Seen:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:
            clients = [self._client(session, number) for number in range(self.clients)]
            await asyncio.gather(*clients)
        return self.seen

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        luck = np.random.default_rng([self.seed, number])
        url = self.urls[number % len(self.urls)] + CHAT
        for _ in range(self.requests_each):
            if not self.going_on:
                return
            mood = str(luck.choice(FAILURES)) if luck.random() < self.failing else ""
            body = {"model": "up", "user": mood, "max_tokens": self.max_tokens, "stream": bool(luck.random() < 0.5)}
            body["messages"] = [{"role": "user", "content": "hello"}]
            patience_s = luck.uniform(0, 0.02) if luck.random() < self.leaving else None
            status = await self._one(session, url, body, patience_s)
            if status == 429 and self.until_refused:
                return

    async def _one(
        self, session: aiohttp.ClientSession, url: str, body: dict[str, Any], patience_s: float | None
    ) -> int:
        try:
            async with asyncio.timeout(patience_s):
                headers = {"authorization": f"Bearer {self.key}"}
                async with session.post(url, json=body, headers=headers) as answer:
                    self.seen.statuses[answer.status] += 1
                    raw = await answer.read()
                    if answer.status == 200 and is_whole(raw, stream=body["stream"]):
                        self.seen.complete.append(answer.headers["x-request-id"])
                    return answer.status
        except TimeoutError:
            self.seen.left += 1
        except (aiohttp.ClientError, OSError):
            self.seen.lost += 1
            await asyncio.sleep(0)
        return 0


def is_whole(raw: bytes, *, stream: bool) -> bool:
    return raw.endswith(b"data: [DONE]\n\n") if stream else "choices" in json.loads(raw)
