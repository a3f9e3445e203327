"""Answers without a model: the sentences of the passages that are nearest to the question, word for word, cited.

Scoring is lexical (no model needed): a sentence earns each word it shares with the question, rarer words more, and is
damped by its length. Passages come ranked, so an earlier passage wins a tie.
"""

import math
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import msgspec

from backends import sse
from backends.base import COMPLETIONS, EMBEDDINGS, RERANK, Answer, Call, Event, Passage, PromptSize
from backends.errors import BackendUnavailable, InvalidRequest
from backends.wire import Body, Usage

MAX_SENTENCES = 3
MAX_CHOICES = 128

_WORD = re.compile(r"\w+")
_CODE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6}[ \t].*$", re.MULTILINE)
_BLOCK_END = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*|#>]|\d+\.) )|\n(?=\|)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÀ-Þ0-9`\"'(\[*])")
STOP_WORDS = frozenset(
    "a an and are as at be by can do does for from has have how i if in is it its me my not of on or so that the their "
    "there this to was what when where which who why will with you your".split()
)


class Sentence(NamedTuple):
    text: str
    passage: int
    score: float


class Quote:
    """Implements `Backend`. Needs `call.passages`; generates nothing, so its usage counts words of the quotation."""

    local = True
    quotes = True

    def __init__(self, name: str) -> None:
        self.name = name

    async def complete(self, call: Call) -> Answer:
        text, usage = self._answer(call)
        legacy = call.path == COMPLETIONS
        said: dict[str, Any] = {"text": text}
        if not legacy:
            said = {"message": {"role": "assistant", "content": text, "refusal": None, "annotations": []}}
        body = self._envelope(call, "text_completion" if legacy else "chat.completion")
        body["choices"] = [
            {"index": index, **said, "logprobs": None, "finish_reason": "stop"} for index in range(_wanted(call.body))
        ]
        return Answer(msgspec.json.encode(body | {"usage": _usage_object(usage)}), usage, {})

    async def stream(self, call: Call) -> AsyncGenerator[Event, None]:
        text, usage = self._answer(call)
        legacy = call.path == COMPLETIONS
        envelope = self._envelope(call, "text_completion" if legacy else "chat.completion.chunk")

        def event(index: int, delta: str, finish: str | None = None, *, role: bool = False) -> Event:
            part: dict[str, Any] = {"role": "assistant"} if role else {}
            part |= {"content": delta} if delta or role else {}
            said = {"text": delta} if legacy else {"delta": part}
            choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
            return Event(sse.encode(msgspec.json.encode(envelope | {"choices": [choice]})), usage, len(delta))

        for index in range(_wanted(call.body)):
            if not legacy:
                yield event(index, "", role=True)
            for line in text.splitlines(keepends=True):
                yield event(index, line)
            yield event(index, "", "stop")
        if (call.body.read("stream_options", dict[str, Any]) or {}).get("include_usage"):
            last = envelope | {"choices": [], "usage": _usage_object(usage)}
            yield Event(sse.encode(msgspec.json.encode(last)), usage)
        yield Event(sse.DONE, usage, last=True)

    def _answer(self, call: Call) -> tuple[str, Usage]:
        if call.path in (EMBEDDINGS, RERANK):
            raise InvalidRequest(
                "this model quotes documents; it makes no embeddings and ranks nothing.", param="model"
            )
        form = call.body.read("response_format", dict[str, Any]) or {}
        if form.get("type") not in (None, "text"):
            raise InvalidRequest(
                "this model quotes documents word for word, and cannot keep to a format.", param="response_format"
            )
        if not call.passages:
            raise BackendUnavailable(
                self.name,
                "it only quotes documents and there are none for this question; ask a model that has a collection, "
                "or add a chat model",
            )
        question = question_of(call.body)
        text = compose(best_sentences(question, call.passages), call.passages, marks=call.marks)
        return text, Usage(len(_WORD.findall(question)), len(_WORD.findall(text)))

    def _envelope(self, call: Call, object_: str) -> dict[str, Any]:
        prefix = "cmpl" if object_ == "text_completion" else "chatcmpl"
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": object_,
            "created": int(time.time()),
            "model": call.model,
            "system_fingerprint": "fp_quote",
        }

    async def count(self, call: Call) -> PromptSize | None:
        return None

    async def count_texts(self, texts: Sequence[str]) -> list[int] | None:
        return None

    async def identity(self) -> str:
        return "quote"

    def status(self) -> str:
        return "ready"

    async def aclose(self) -> None:
        return None


def _wanted(body: Body) -> int:
    """How many choices: all of them are the same quotation."""
    wanted = body.read("n", int, 1)
    if not 1 <= wanted <= MAX_CHOICES:
        raise InvalidRequest(f"'n' is {wanted}; it must lie between 1 and {MAX_CHOICES}.", param="n")
    return wanted


def best_sentences(question: str, passages: Sequence[Passage], *, limit: int = MAX_SENTENCES) -> list[Sentence]:
    """At most `limit` sentences, best first. Without any shared word: the beginning of the best passage."""
    sentences = [(text, place) for place, passage in enumerate(passages) for text in split_sentences(passage.text)]
    frequency = Counter(word for text, _ in sentences for word in set(_words(text)))
    wanted = set(_words(question))
    rated = []
    for text, place in sentences:
        shared = wanted & set(_words(text))
        rarity = sum(math.log(1 + len(sentences) / frequency[word]) for word in shared)
        damping = 1 + math.log1p(len(_words(text)) / 12)
        rated.append(Sentence(text, place, _weight(text) * rarity / damping / (1 + place / 4)))
    rated.sort(key=lambda sentence: -sentence.score)
    useful = [sentence for sentence in rated if sentence.score > 0 and sentence.score >= rated[0].score / 2]
    beginning = sentences or [(" ".join(passages[0].text.split()), 0)]  # a passage may be nothing but its heading
    return useful[:limit] or [Sentence(text, place, 0.0) for text, place in beginning[:1]]


def _weight(text: str) -> float:
    """Prose answers a question; code and rows of tables mostly name its words."""
    return 0.7 if text.startswith(("```", "~~~")) else 0.5 if text.startswith("|") else 1.0


def compose(sentences: Sequence[Sentence], passages: Sequence[Passage], *, marks: bool = True) -> str:
    """The quotation, a line per sentence with its passage's number, then the sources.

    Args:
        marks: False: the words alone.
    """
    if not marks:
        return "\n\n".join(sentence.text for sentence in sentences)
    lines = []
    for sentence in sentences:
        gap = "\n" if "\n" in sentence.text else " "  # a marker must not become part of a code block's last fence
        lines.append(f"{sentence.text}{gap}[{passages[sentence.passage].number}]")
    cited = dict.fromkeys(sentence.passage for sentence in sentences)
    sources = [f"[{passages[place].number}] {passages[place].source}" for place in cited]
    return "\n\n".join(lines) + "\n\nSources:\n" + "\n".join(sources)


def split_sentences(text: str) -> list[str]:
    """Sentences, list items, table rows and whole code blocks, without the wordless ones. Code keeps its lines."""
    parts: list[str] = []
    start = 0
    for code in (*_CODE.finditer(text), None):
        prose = _HEADING.sub("", text[start : code.start() if code else len(text)])
        parts += [" ".join(part.split()) for block in _BLOCK_END.split(prose) for part in _SENTENCE_END.split(block)]
        if code:
            parts.append(code.group())
            start = code.end()
    return [part for part in parts if len(part) > 1 and _WORD.search(part)]


def question_of(body: Body) -> str:
    """The last user message, or the prompt of a legacy completion."""
    if "messages" not in body:
        prompt = body.read("prompt", object)
        return prompt if isinstance(prompt, str) else " ".join(map(str, prompt)) if isinstance(prompt, list) else ""
    for message in reversed(body.read("messages", list[dict[str, Any]], [])):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            if isinstance(content, list):
                return " ".join(
                    part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
                )
    raise InvalidRequest("'messages' holds no user message to answer.", param="messages")


def _words(text: str) -> list[str]:
    """Lower case, without stop words, each cut to its stem, roughly: enough for `recorded` to meet `records`."""
    return [_stem(word) for word in map(str.lower, _WORD.findall(text)) if word not in STOP_WORDS]


def _stem(word: str) -> str:
    for suffix in ("ing", "ed", "s"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word.removesuffix(suffix)
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _usage_object(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
