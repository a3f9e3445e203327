from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Passage
from retrieval.catalog import Chunk
from retrieval.citations import (
    FRAME_TOKENS,
    INSTRUCTION,
    TOKENS_AROUND,
    context_of,
    inject_into_messages,
    inject_into_prompt,
    pack,
)
from retrieval.search import Found

PASSAGES = (Passage(1, "Holds expire.", "a.md — Quotas", 0.9), Passage(2, "Slices roll.", "b.md", 0.5))
CONTEXT = context_of(PASSAGES)


def found(*sizes: int) -> list[Found]:
    """Passages of so many words each, best first."""
    return [
        Found(Chunk(place, "docs/a.md", "A", f"Section {place}", " ".join(["word"] * size), size), 1 / (place + 1))
        for place, size in enumerate(sizes)
    ]


def words(one: Found) -> int:
    return len(one.chunk.text.split())


@given(sizes=st.lists(st.integers(0, 300), max_size=20), budget=st.integers(-50, 1500))
def test_the_budget_is_never_exceeded_and_numbers_have_no_gaps(sizes: list[int], budget: int) -> None:
    packed = pack(found(*sizes), budget_tokens=budget, count=words)
    assert sum(len(one.text.split()) + TOKENS_AROUND for one in packed.passages) <= max(0, budget)
    assert [one.number for one in packed.passages] == list(range(1, len(packed.passages) + 1))
    assert len(packed.passages) + packed.left_out == len(sizes)
    assert [one.score for one in packed.passages] == sorted((one.score for one in packed.passages), reverse=True)


def test_a_large_passage_makes_room_for_smaller_ones_behind_it() -> None:
    packed = pack(found(10, 500, 20), budget_tokens=10 + 20 + 2 * TOKENS_AROUND + FRAME_TOKENS, count=words)
    assert [(one.number, len(one.text.split())) for one in packed.passages] == [(1, 10), (2, 20)]
    assert packed.left_out == 1
    assert packed.passages[1].source == "docs/a.md — Section 2"


def test_the_whole_context_stays_inside_the_budget() -> None:
    packed = pack(found(60), budget_tokens=60 + TOKENS_AROUND, count=words)
    assert len(context_of(packed.passages).split()) <= 60 + TOKENS_AROUND


def test_the_context_holds_each_passage_under_its_number_and_source() -> None:
    assert CONTEXT.startswith(INSTRUCTION)
    assert "\n\n[1] a.md — Quotas\nHolds expire.\n\n[2] b.md\nSlices roll.\n\n</passages>" in CONTEXT


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
ASKED = {"type": "text", "text": "Why?"}
EARLIER = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
]


@pytest.mark.parametrize("after", [[], [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool"}]])
@pytest.mark.parametrize(
    ("content", "injected"),
    [
        ("Why?", f"{CONTEXT}\n\nWhy?"),
        ("", f"{CONTEXT}\n\n"),
        ([IMAGE, ASKED], [{"type": "text", "text": f"{CONTEXT}\n\n"}, IMAGE, ASKED]),
        ([], [{"type": "text", "text": f"{CONTEXT}\n\n"}]),
    ],
    ids=["string", "empty", "parts", "no parts"],
)
def test_passages_go_into_the_last_user_message_in_front_of_the_question(
    content: Any, injected: Any, after: list[dict[str, Any]]
) -> None:
    asked = {"role": "user", "content": content, "name": "ana"}
    messages = [*EARLIER, asked, *after]
    before = [dict(message) for message in messages]
    assert inject_into_messages(messages, PASSAGES) == [*EARLIER, asked | {"content": injected}, *after]
    assert messages == before


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}])
def test_a_user_message_without_content_becomes_the_context_alone(message: dict[str, Any]) -> None:
    assert "None" not in inject_into_messages([message], PASSAGES)[0]["content"]


@pytest.mark.parametrize("messages", [[], EARLIER[:1], [{"content": "no role"}]])
def test_without_a_user_message_nothing_is_injected(messages: list[dict[str, Any]]) -> None:
    assert inject_into_messages(messages, PASSAGES) == messages


def test_without_passages_nothing_changes() -> None:
    assert inject_into_messages(EARLIER, []) == EARLIER
    assert inject_into_prompt("Why?", []) == "Why?"


def test_in_a_prompt_the_question_stays_last() -> None:
    assert inject_into_prompt("Why?", PASSAGES) == f"{CONTEXT}\n\nWhy?"
