"""`make guide-eval`: the shipped `guide`, run as the gateway runs it, is asked wordings that its training has never seen.

An answer counts when it is the right one word for word; a question about something else counts when `guide` says that it does not know.
"""

import argparse
import asyncio
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.backends.llamacpp.local import chat, running, texts

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "config" / "models" / "guide"
GGUF = ROOT / "config" / "models" / "guide.gguf"
SLOTS = 8


class Asked(NamedTuple):
    question: str
    right: str


class Score(NamedTuple):
    """Wrong ones as (question, what was answered)."""

    asked: int
    wrong: list[tuple[str, str]]

    @property
    def share(self) -> float:
        return 1 - len(self.wrong) / self.asked

    def __str__(self) -> str:
        return f"{self.asked - len(self.wrong)} of {self.asked}: {self.share:.1%}"


def topics() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "questions.yaml").read_text("utf-8"))
    return found


def elsewhere() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "elsewhere.yaml").read_text("utf-8"))
    return found


def plain(question: str) -> str:
    """Wordings that differ in this only are the same."""
    return " ".join(re.findall(r"\w+", question.lower()))


def held_out() -> tuple[list[Asked], list[Asked]]:
    """(about the gateway, about something else)"""
    known = [Asked(question, topic["answer"]) for topic in topics() for question in topic["held_out"]]
    other = elsewhere()
    return known, [Asked(question, other["answer"]) for question in other["held_out"]]


async def score(asked: list[Asked], path: Path = GGUF, *, temperature: float = 0) -> Score:
    free = asyncio.Semaphore(2 * SLOTS)
    async with running(path, context_tokens=2048, slots=SLOTS, threads=max(1, (os.cpu_count() or 1) - 1)) as backend:

        async def answer(one: Asked) -> str:
            async with free:
                return (await texts(backend, chat(one.question, max_tokens=128, temperature=temperature)))[0]

        told = await asyncio.gather(*map(answer, asked))
    return Score(
        len(asked), [(one.question, words) for one, words in zip(asked, told, strict=True) if words != one.right]
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=GGUF)
    parser.add_argument("--wrong", action="store_true", help="Show what was answered wrong.")
    options = parser.parse_args()
    print(f"{options.model}: {options.model.stat().st_size:,} bytes, {len(topics())} questions")
    for words, asked in zip(
        ("held-out wordings of these questions", "questions about something else"), held_out(), strict=True
    ):
        started = time.monotonic()
        found = await score(asked, options.model)
        print(f"{words}: {found} ({time.monotonic() - started:.1f} s)")
        for question, told in found.wrong if options.wrong else []:
            print(f"  {question!r} -> {told[:90]!r}")


if __name__ == "__main__":
    asyncio.run(main())
