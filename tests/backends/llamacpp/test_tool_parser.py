"""Text of models -> calls of tools, however it is cut to pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.tool_formats import (
    HERMES,
    IN_WORDS,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    ToolFormat,
    format_of,
)
from backends.llamacpp.tool_messages import for_template, in_words
from backends.llamacpp.tool_parser import Part, ToolParser
from backends.llamacpp.tools import Tool

NAMES = frozenset({"look", "go"})


def told(parts: list[Part]) -> tuple[str, list[tuple[str, str]]]:
    text, calls = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
        elif part.name is not None:
            assert part.number == len(calls)
            calls.append([part.name, part.arguments])
        else:
            calls[part.number][1] += part.arguments
    return text, [(name, arguments) for name, arguments in calls]


def read(form: ToolFormat, *pieces: str, parallel: bool = True) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolParser(form, NAMES, parallel=parallel)
    parts = [part for piece in pieces for part in parser.feed(piece)]
    return told(parts + parser.finish())


LOOK = ("look", '{"at": "the \\"}road{"}')
CASES: list[tuple[ToolFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, "just words, and <b>marks</b> ", "just words, and <b>marks</b> ", []),
    (HERMES, '<tool_call>\n{"name": "look", "arguments": {"at": "the \\"}road{"}}\n</tool_call>', "", [LOOK]),
    (
        HERMES,
        'I look. \n<tool_call>{"name": "look", "arguments": {}}</tool_call>\n<tool_call>\n{"name":"go","arguments":{"n":[1,{}]}}\n</tool_call>\n',
        "I look.",
        [("look", "{}"), ("go", '{"n":[1,{}]}')],
    ),
    (HERMES, '<tool_call>{"arguments": {"n": 1}, "name": "go"}</tool_call>', "", [("go", '{"n":1}')]),
    (HERMES, '<tool_call>{"name": "go", "arguments": "{\\"n\\": 1}"}</tool_call>', "", [("go", '{"n": 1}')]),
    (HERMES, '<tool_call>{"name": "new", "arguments": {}, "id": 5}', "", [("new", "{}")]),
    (HERMES, "<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", []),
    (HERMES, '<tool_call>{"nam', '<tool_call>{"nam', []),
    (HERMES, '<tool_call>{"name": "go", "arguments": {"n": 1', "", [("go", '{"n": 1')]),
    (HERMES, 'Say <tool_call> to call. \n<tool_call>{"name": "go", "arguments": {}}</tool_call>', "Say <tool_call> to call.", [("go", "{}")]),
    (HERMES, "Write\n\n<tool_call>words", "Write\n\n<tool_call>words", []),
    (HERMES, '<tool_call>{"name": "go", "arguments": {}}</tool_call> done', " done", [("go", "{}")]),
    (HERMES, '<tool_call>{"name": "go", "arguments": {}}</tool_call>\n<tool_call>{"na', '\n<tool_call>{"na', [("go", "{}")]),
    (LLAMA, '{"name": "go", "parameters": {}} and {more', " and {more", [("go", "{}")]),
    (LLAMA, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (LLAMA, "<|python_tag|><|python_tag|>", "<|python_tag|><|python_tag|>", []),
    (LLAMA, '{"name": "look", "parameters": {"at": 5}}', "", [("look", '{"at": 5}')]),
    (LLAMA, '<|python_tag|>{"name": "go", "parameters": {}}; {"name": "look", "parameters": {}}', "", [("go", "{}"), ("look", "{}")]),
    (LLAMA, '{"name": "Ada", "parameters": {"born": 1815}}', '{"name": "Ada", "parameters": {"born": 1815}}', []),
    (LLAMA, 'The answer is {"name": "look"}', 'The answer is {"name": "look"}', []),
    (MISTRAL, '[TOOL_CALLS][{"name": "look", "arguments": {"at": 1}}, {"name": "go", "arguments": {}}]', "", [("look", '{"at": 1}'), ("go", "{}")]),
    (MISTRAL, "[TOOLS] are [TOOL", "[TOOLS] are [TOOL", []),
    (MISTRAL_ARGS, '[TOOL_CALLS]look[ARGS]{"at": 1}[TOOL_CALLS]go[CALL_ID]a1b2[ARGS]{}', "", [("look", '{"at": 1}'), ("go", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "words", "calls"), CASES)
@given(cuts=st.lists(st.integers(0, 160), max_size=8))
def test_calls_are_found_however_the_text_is_cut(
    form: ToolFormat, text: str, words: str, calls: list[tuple[str, str]], cuts: list[int]
) -> None:
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in zip(ends, ends[1:], strict=False)]
    for said, called in (read(form, *pieces), read(form, *text)):
        assert (said.strip() if calls else said, called) == (words.strip() if calls else words, calls)


@given(text=st.text(alphabet='<tool_cal>{}[]"name:look,ARGS/ \n', max_size=80))
@pytest.mark.parametrize("form", [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS])
def test_nothing_that_is_no_call_is_lost(form: ToolFormat, text: str) -> None:
    words, calls = read(form, *text)
    if not calls:
        assert words == text


def test_arguments_go_out_while_they_are_written() -> None:
    parser = ToolParser(HERMES, NAMES)
    assert parser.feed('<tool_call>\n{"name": "look", "argum') == []
    opened, brace = parser.feed('ents": {')
    assert not isinstance(opened, str)
    assert not isinstance(brace, str)
    assert (opened.name, brace.arguments) == ("look", "{")
    (arguments,) = parser.feed('"at": "the')
    assert not isinstance(arguments, str)
    assert arguments.arguments == '"at": "the'


def test_one_call_is_one_call_where_the_client_wants_no_more() -> None:
    two = (
        '<tool_call>{"name": "go", "arguments": {}}</tool_call><tool_call>{"name": "look", "arguments": {}}</tool_call>'
    )
    assert read(HERMES, *two, parallel=False) == ("", [("go", "{}")])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, IN_WORDS),
        ("{{ messages }}", IN_WORDS),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}<tool_call><function=x>{% endif %}", IN_WORDS),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% if tools %}[TOOL_CALLS][ARGS]{% endif %}", MISTRAL_ARGS),
        ('{% if tools %}<|python_tag|>"parameters"{% endif %}', LLAMA),
        ("{% if tools %}some other way{% endif %}", IN_WORDS),
    ],
)
def test_the_way_of_writing_is_known_from_the_template(template: str | None, form: ToolFormat) -> None:
    assert format_of(template) is form


CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "look!"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "a road"},
]
TOOL = Tool("look", {}, {"type": "function", "function": {"name": "look", "parameters": {}}})


def test_templates_get_arguments_as_objects_and_ids_that_they_take() -> None:
    hermes, mistral = for_template(CALLED, HERMES), for_template(CALLED, MISTRAL)
    assert hermes[1]["tool_calls"][0]["function"]["arguments"] == {"at": 1}
    assert hermes[2]["tool_call_id"] == "call_1"
    (short,) = {mistral[1]["tool_calls"][0]["id"], mistral[2]["tool_call_id"]}
    assert len(short) == 9
    assert short.isalnum()


def test_two_results_in_a_row_are_one_turn_of_the_user() -> None:
    written = in_words(
        [*CALLED, CALLED[2] | {"content": "a river"}, {"role": "user", "content": "and?"}], [], system=True
    )
    assert [message["role"] for message in written] == ["user", "assistant", "user"]
    assert all(word in written[2]["content"] for word in ("a road", "a river", "and?"))


@pytest.mark.parametrize("system", [True, False])
def test_templates_without_tools_get_them_in_words(system: bool) -> None:
    written = in_words([{"role": "system", "content": "Be kind."}, *CALLED], [TOOL], system=system)
    assert [message["role"] for message in written] == ["system", "user", "assistant", "user"]
    told_in = written[0 if system else 1]["content"]
    assert json.dumps(TOOL.as_given["function"], separators=(",", ":")) in told_in
    assert ("Be kind." in told_in) is system
    assert written[2]["content"] == '<tool_call>\n{"name": "look", "arguments": {"at": 1}}\n</tool_call>'
    assert "a road" in written[3]["content"]
