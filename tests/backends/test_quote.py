"""The engine that quotes: the right sentence, its marker, its source."""

import json
from contextlib import aclosing
from typing import Any

import pytest

from backends.base import CHAT, COMPLETIONS, Call, Passage
from backends.errors import BackendUnavailable, InvalidRequest
from backends.quote import Quote, best_sentences, question_of, split_sentences
from backends.wire import Body

pytestmark = pytest.mark.anyio

PASSAGES = (
    Passage(1, "The relay station opens at dawn. Runners sleep here. Bread costs two coins.", "stations.md", 0.9),
    Passage(2, "Bridges are inspected every spring. A runner carries the knotted cord.", "roads.md", 0.8),
)


def call(path: str = CHAT, passages: tuple[Passage, ...] = PASSAGES, **fields: Any) -> Call:
    asked = {"prompt": "bread?"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "bread?"}]}
    return Call(path, Body(json.dumps({"model": "quote"} | asked | fields).encode()), "req_1", "docs", passages)


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


async def test_the_sentence_that_shares_words_with_the_question_is_quoted_and_cited() -> None:
    answer = await Quote("q").complete(call(messages=user("What does the bread cost?")))
    body = json.loads(answer.body)
    assert body["choices"][0]["message"]["content"] == "Bread costs two coins. [1]\n\nSources:\n[1] stations.md"
    assert (body["object"], body["model"], body["choices"][0]["finish_reason"]) == ("chat.completion", "docs", "stop")
    assert body["usage"]["total_tokens"] == answer.usage.total_tokens > body["usage"]["completion_tokens"] > 0


async def test_sources_are_listed_once_in_the_order_of_their_numbers() -> None:
    answer = await Quote("q").complete(call(messages=user("inspected bridges cord bread coins")))
    text = json.loads(answer.body)["choices"][0]["message"]["content"]
    assert text.partition("Sources:\n")[2] == "[1] stations.md\n[2] roads.md"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_stream_says_the_same_as_the_whole_answer(path: str) -> None:
    whole = json.loads((await Quote("q").complete(call(path))).body)["choices"][0]
    async with aclosing(Quote("q").stream(call(path, stream_options={"include_usage": True}))) as events:
        raw = [event async for event in events]
    chunks = [json.loads(event.raw.removeprefix(b"data: ")) for event in raw[:-1]]
    parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    text = "".join(part["text"] if path == COMPLETIONS else part["delta"].get("content", "") for part in parts)
    assert text == (whole["text"] if path == COMPLETIONS else whole["message"]["content"])
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert chunks[-1]["usage"]["completion_tokens"] == raw[-1].usage.completion_tokens
    assert (raw[-1].raw, [event.last for event in raw]) == (b"data: [DONE]\n\n", [False] * len(chunks) + [True])


async def test_a_stream_without_the_wish_for_usage_has_no_usage_chunk() -> None:
    async with aclosing(Quote("q").stream(call())) as events:
        assert not [event async for event in events if b'"usage"' in event.raw]


@pytest.mark.parametrize("how", ["complete", "stream"])
async def test_without_passages_it_is_not_available_and_says_what_to_do(how: str) -> None:
    backend, asked = Quote("q"), call(passages=())
    with pytest.raises(BackendUnavailable, match="ask a model that has a collection"):
        await (backend.complete(asked) if how == "complete" else anext(backend.stream(asked)))


@pytest.mark.parametrize("how", ["complete", "stream"])
@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
async def test_a_format_that_a_quotation_cannot_keep_to_is_refused(how: str, kind: str) -> None:
    backend, asked = Quote("q"), call(response_format={"type": kind})
    with pytest.raises(InvalidRequest, match="cannot keep to a format") as caught:
        await (backend.complete(asked) if how == "complete" else anext(backend.stream(asked)))
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("form", [None, {}, {"type": "text"}])
async def test_plain_text_is_a_format_that_it_keeps_to(form: object) -> None:
    answer = await Quote("q").complete(call(response_format=form))
    assert "Bread costs two coins." in json.loads(answer.body)["choices"][0]["message"]["content"]


async def test_it_cannot_count_tokens() -> None:
    assert await Quote("q").count(call()) is None
    assert await Quote("q").count_texts(["a"]) is None
    assert (await Quote("q").identity(), Quote("q").status(), Quote("q").quotes) == ("quote", "ready", True)


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ({"messages": [*user("first"), {"role": "assistant", "content": "x"}, *user("last")]}, "last"),
        (
            {"messages": user([{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}])},
            "a b",
        ),
        ({"prompt": "p"}, "p"),
        ({"prompt": ["p", "q"]}, "p q"),
        ({"prompt": None}, ""),
    ],
)
def test_the_question_is_the_last_user_message_or_the_prompt(body: dict[str, Any], question: str) -> None:
    assert question_of(Body(json.dumps(body).encode())) == question


@pytest.mark.parametrize("messages", [[], None, [{"role": "system", "content": "x"}], user(None)])
def test_a_chat_without_a_question_is_refused(messages: object) -> None:
    with pytest.raises(InvalidRequest, match="no user message") as caught:
        question_of(Body(json.dumps({"messages": messages}).encode()))
    assert caught.value.param == "messages"


def test_an_earlier_passage_wins_a_tie() -> None:
    twins = [Passage(number, "Water is scarce here.", "x", 1.0) for number in (1, 2)]
    assert [sentence.passage for sentence in best_sentences("water", twins)] == [0, 1]


def test_a_rare_word_counts_more_than_a_frequent_one() -> None:
    text = "The station has water. The station has bread. The station has llamas."
    assert best_sentences("station llamas", [Passage(1, text, "x", 1.0)])[0].text == "The station has llamas."


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("roads", "Road"),
        ("road", "Roads"),
        ("files", "File"),
    ],
)
def test_a_plural_finds_its_singular_and_stop_words_find_nothing(asked: str, written: str) -> None:
    passages = [Passage(1, f"Here is what you do with the. {written} repair.", "x", 1.0)]
    found = best_sentences(f"what do you do with {asked}", passages)
    assert [sentence.text for sentence in found] == [f"{written} repair."]


def test_without_a_shared_word_the_best_passage_begins() -> None:
    assert [(s.text, s.score) for s in best_sentences("zebra", PASSAGES)] == [("The relay station opens at dawn.", 0.0)]


def test_no_more_sentences_than_wanted() -> None:
    passages = [Passage(1, "Water one. Water two. Water three. Water four. Water five.", "x", 1.0)]
    assert len(best_sentences("water", passages)) == 3
    assert len(best_sentences("water", passages, limit=1)) == 1


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two!  Three? four", ["One.", "Two!", "Three? four"]),
        ("- first\n- second\n* third", ["- first", "- second", "* third"]),
        ("| a | b |\n| --- | --- |\n| 1 | 2 |", ["| a | b |", "| 1 | 2 |"]),
        ("# Heading\n\nBroken\nline.", ["Broken line."]),
        ("...\n\n---\n\n", []),
    ],
)
def test_text_is_split_into_sentences_items_and_rows(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_sentence_right_below_a_heading_can_be_quoted() -> None:
    assert any("Bread costs two coins" in sentence for sentence in split_sentences("# Prices\nBread costs two coins."))


def test_a_passage_of_nothing_but_a_heading_still_gives_a_quotation() -> None:
    assert best_sentences("prices", [Passage(1, "# Prices", "x", 1.0)])
