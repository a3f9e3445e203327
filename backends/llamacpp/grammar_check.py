"""Schemas and grammars of clients -> grammars that a sequence may be held to, by way of a process that may be killed."""

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from typing import Any

import msgspec

from backends.errors import InvalidRequest
from backends.llamacpp.grammars import WHITESPACE, Source

LIMIT_S = 1.0
"""For one grammar."""

START_LIMIT_S = 30.0
KEPT = 256
"""Grammars; applications send the same few again and again."""

ANSWER_BYTES = 8 * 1024 * 1024


class GrammarCheck:
    """One child, one question at a time."""

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._child: Process | None = None
        self._turn = asyncio.Lock()
        self._known: OrderedDict[Source, str] = OrderedDict()

    async def grammar(self, source: Source) -> str:
        """For `Ask.grammar`.

        Raises:
            InvalidRequest: it is none, it cannot be met, or it takes too long to find out.
        """
        if source in self._known:
            self._known.move_to_end(source)
            return self._known[source]
        async with self._turn:
            answer = await self._asked(source) or await self._asked(source)
        if answer is None:
            answer = {"error": "it is too complex to be prepared"}
        if "error" in answer:
            words = " ".join(str(answer["error"]).split())[:400]
            raise InvalidRequest(f"'{source.param}' cannot be followed: {words}", param=source.param)
        self._known[source] = grammar = str(answer["grammar"])
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return grammar

    async def _asked(self, source: Source) -> dict[str, Any] | None:
        """None: the child has died over it, or for reasons of its own."""
        child = await self._alive()
        assert child.stdin is not None
        question = {"kind": source.kind, "text": source.text, "whitespace": WHITESPACE}
        try:
            async with asyncio.timeout(self._limit_s):
                child.stdin.write(msgspec.json.encode(question) + b"\n")
                await child.stdin.drain()
                return await _line(child)
        except TimeoutError:
            await self.aclose()
            return {"error": f"it takes more than {self._limit_s:g} s to prepare; make it smaller"}
        except (ConnectionError, EOFError):
            await self.aclose()
            return None
        except BaseException:  # the client left in the middle: nobody knows which question the next answer is for
            await self.aclose()
            raise

    async def _alive(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            self._child = child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "backends.llamacpp.grammar_child"), stdin=PIPE, stdout=PIPE, limit=ANSWER_BYTES
            )
            try:
                async with asyncio.timeout(START_LIMIT_S):
                    await _line(child)
            except (TimeoutError, EOFError) as exc:
                await self.aclose()
                raise RuntimeError("the process that prepares grammars does not start") from exc
            except BaseException:
                await self.aclose()
                raise
        return self._child

    async def aclose(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def _line(child: Process) -> dict[str, Any]:
    """
    Raises:
        EOFError: it has ended.
    """
    assert child.stdout is not None
    try:
        line = await child.stdout.readline()
    except ValueError as exc:  # longer than any grammar may be
        raise EOFError from exc
    if not line:
        raise EOFError
    return msgspec.json.decode(line, type=dict[str, Any])
