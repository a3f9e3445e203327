"""A follow-up -> a question that can be searched for by itself, by a model that reads the conversation."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from backends.errors import BackendError

log = logging.getLogger("chasqui.collections")

TURNS = 6
"""Messages of the conversation that are read, at most."""

MAX_CHARS = 2000
"""Of each of them."""

MAX_QUESTION_CHARS = 400
MAX_TOKENS = 96
TIMEOUT_S = 15.0

INSTRUCTION = (
    "You rewrite the last question of a conversation so that it can be understood without the conversation: pronouns and "
    "allusions are replaced by what they stand for. Answer with the rewritten question alone, in the language of the "
    "conversation, on one line. If it needs no rewriting, repeat it."
)

Complete = Callable[[dict[str, Any]], Awaitable[bytes]]
"""A chat body without its model -> the whole answer."""


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Answer(msgspec.Struct):
    choices: list[_Choice]


async def rewritten(messages: Sequence[dict[str, Any]], complete: Complete) -> str | None:
    """None: the question stays as it is, because nothing sensible came back.

    Args:
        messages: up to the question.
    """
    body = {
        "messages": [
            {"role": "system", "content": INSTRUCTION},
            {"role": "user", "content": f"{_transcript(messages)}\n\nRewritten question:"},
        ],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await complete(body)
        text = msgspec.json.decode(answer, type=_Answer).choices[0].message.content or ""
    except (BackendError, TimeoutError, msgspec.MsgspecError, IndexError) as exc:
        log.warning("a follow-up is searched for as it is, the model that should rewrite it failed: %s", exc)
        return None
    question = next((line.strip().strip('"') for line in text.splitlines() if line.strip()), "")
    return question if 0 < len(question) <= MAX_QUESTION_CHARS else None


def _transcript(messages: Sequence[dict[str, Any]]) -> str:
    said = [(message["role"], text_of(message)) for message in messages if message.get("role") in ("user", "assistant")]
    return "\n".join(f"{role}: {text[:MAX_CHARS]}" for role, text in said[-TURNS:] if text)


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""
