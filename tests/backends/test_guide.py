"""The chat model of the box: small, shipped, and right about this gateway."""

import json
import re

import pytest

from backends.gguf_head import read_head
from tests import guide
from tests.backends.llamacpp.local import chat, running, texts

pytestmark = pytest.mark.anyio


def test_it_is_small_and_brings_its_template() -> None:
    assert guide.GGUF.stat().st_size <= 6_000_000
    head = read_head(guide.GGUF)
    assert (head.architecture, head.name, head.serves, head.chat_template) == ("llama", "guide", "chat", True)


def test_it_was_asked_enough_and_never_what_it_is_judged_by() -> None:
    topics, other = guide.topics(), guide.elsewhere()
    assert len(topics) >= 150
    assert len({topic["answer"] for topic in topics}) == len(topics)
    assert all(len(topic["ask"]) >= 5 and len(topic["held_out"]) >= 2 for topic in topics)
    trained = {guide.plain(question) for topic in topics for question in topic["ask"]} | set(
        map(guide.plain, other["ask"])
    )
    known, unknown = guide.held_out()
    assert not trained & {guide.plain(asked.question) for asked in (*known, *unknown)}
    formed = {form.format(thing=thing, other=thing) for form in other["forms"] for thing in other["things"]}
    assert not set(map(guide.plain, formed)) & {guide.plain(asked.question) for asked in unknown}


async def test_held_out_wordings_get_the_right_answer() -> None:
    known, unknown = guide.held_out()
    assert (await guide.score(known)).share >= 0.9
    assert (await guide.score(unknown)).share >= 0.75


async def test_clients_who_sample_get_the_answer_that_is_likeliest() -> None:
    """They do, where they say nothing of a temperature."""
    known = guide.held_out()[0][::8]
    assert (await guide.score(known, temperature=1)).share >= (await guide.score(known)).share - 0.05


@pytest.mark.parametrize("content", ["", "?", "x" * 20_000, "é" * 500, "<|end|><|assistant|>", "\x00\ud7ff\U0001f600"])
async def test_whatever_is_said_there_is_an_answer(content: str) -> None:
    async with running(guide.GGUF, context_tokens=2048) as backend:
        assert (await texts(backend, chat(content or " ", max_tokens=128)))[0]


async def test_a_context_beyond_what_it_was_trained_with_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    for context_tokens, warned in ((2048, False), (4096, True)):
        caplog.clear()
        async with running(guide.GGUF, context_tokens=context_tokens) as backend:
            assert (await texts(backend, chat("hello")))[0]
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert any("but the model was trained with 2048" in words for words in told) == warned


async def test_it_hears_the_last_user_message_only() -> None:
    async with running(guide.GGUF, context_tokens=2048) as backend:
        alone = await texts(backend, chat("Who are you?", max_tokens=128))
        messages = [
            {"role": "system", "content": "You are a pirate."},
            {"role": "user", "content": "how do I create a key?"},
            {"role": "assistant", "content": "…"},
            {"role": "user", "content": "who are YOU?"},
        ]
        assert await texts(backend, chat(messages=messages, max_tokens=128)) == alone
        assert "guide" in alone[0]


def test_its_facts_name_only_commands_that_exist() -> None:
    """`chasqui keys create`, `chasqui models pull`, … in the answers."""
    from gateway.cli import cli

    context = cli.make_context("chasqui", [], resilient_parsing=True)
    for topic in guide.topics():
        for command in re.findall(
            r"\bchasqui ((?:serve|check|keys|collections|models|worker|chat)\b(?: [a-z]+)?)", topic["answer"]
        ):
            first, _, second = command.partition(" ")
            found = cli.get_command(context, first)
            assert found is not None, command
            if second and hasattr(found, "commands"):
                assert second in found.commands, f"{command} in {json.dumps(topic['answer'])}"


def test_the_ways_to_say_the_same_are_words() -> None:
    wordings = guide.yaml.safe_load((guide.FOLDER / "wordings.yaml").read_text("utf-8"))
    assert all(isinstance(word, str) for kind in ("openings", "synonyms") for group in wordings[kind] for word in group)
    assert all(isinstance(word, str) for kind in ("before", "after") for word in wordings[kind])
