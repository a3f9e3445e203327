"""Tools of a real worker: a model that babbles calls what it is made to call."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

from backends.base import Call
from backends.errors import InvalidRequest, UpstreamRefused
from backends.llamacpp import synthetic
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.tools import MAX_TOOLS, read_tools
from backends.wire import Body
from tests.backends.llamacpp.local import chat, events, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def local(anyio_backend: str, synthetic_gguf: Path) -> AsyncIterator[LocalBackend]:
    """With room for tools that are explained in words, letter by letter."""
    async with running(synthetic_gguf, context_tokens=2048) as backend:
        yield backend


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at something",
        "parameters": {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/thing"}, "times": {"type": "integer", "minimum": 1, "maximum": 3}},
            "required": ["at", "times"],
            "additionalProperties": False,
            "$defs": {"thing": {"enum": ["road", "river"]}},
        },
    },
}
GO = {"type": "function", "function": {"name": "go"}}


def calling(choice: Any, **fields: Any) -> Call:
    options = {"tools": [LOOK, GO], "tool_choice": choice, "max_tokens": 120, "temperature": 1.0, "seed": 1}
    return chat(**(options | fields))


async def answered(backend: LocalBackend, asked: Call) -> dict[str, Any]:
    (choice,) = json.loads((await backend.complete(asked)).body)["choices"]
    return dict(choice)


NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize("seed", range(4))
async def test_a_named_tool_is_called_with_arguments_that_fit(local: LocalBackend, seed: int) -> None:
    choice = await answered(local, calling(NAMED, seed=seed))
    assert choice["finish_reason"] == "stop", "OpenAI's word where the client named the tool"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["at"] in ("road", "river")
    assert arguments["times"] in (1, 2, 3)


async def test_some_tool_is_called_where_one_is_required(local: LocalBackend) -> None:
    choice = await answered(local, calling("required", parallel_tool_calls=False))
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] in ("look", "go")
    assert call["id"].startswith("call_")


async def test_calls_stream_as_deltas(local: LocalBackend) -> None:
    chunks = [chunk["choices"][0] for chunk in await events(local, calling(NAMED, stream=True))]
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "look"
    assert calls[0]["id"]
    assert len(calls) > 3, "arguments come as they are written"
    assert all("id" not in call for call in calls[1:])
    arguments = json.loads("".join(call["function"]["arguments"] for call in calls))
    assert arguments["at"] in ("road", "river")
    assert [chunk["finish_reason"] for chunk in chunks][-1] == "stop"
    assert not any(chunk["delta"].get("content") for chunk in chunks)


@pytest.mark.parametrize("cut", [{"max_tokens": 6}, {"stop": ["name"]}])
async def test_a_call_that_was_cut_off_before_its_name_is_no_text(local: LocalBackend, cut: dict[str, Any]) -> None:
    choice = await answered(local, calling("required", **cut))
    assert choice["message"]["content"] == ""
    assert "tool_calls" not in choice["message"]


async def test_a_schema_for_words_holds_beside_tools_that_need_not_be_called(local: LocalBackend) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["ja", "nein"]}}}
    for seed in range(3):
        choice = await answered(local, calling("auto", response_format=wanted, seed=seed))
        calls, text = choice["message"].get("tool_calls"), choice["message"]["content"]
        assert calls or json.loads(text) in ("ja", "nein")


async def test_tools_that_are_not_wanted_change_nothing(local: LocalBackend) -> None:
    plain = await answered(local, chat())
    assert await answered(local, chat(tools=[LOOK], tool_choice="none")) == plain


async def test_tools_are_counted_and_results_can_be_sent_back(local: LocalBackend) -> None:
    with_tools, without = await local.count(calling("auto")), await local.count(chat())
    assert with_tools.prompt_tokens > without.prompt_tokens
    call = {"id": "call_1", "type": "function", "function": {"name": "go", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "gone"},
    ]
    choice = await answered(local, calling("none", messages=messages, temperature=0, max_tokens=4))
    assert choice["message"]["content"]


async def test_a_tool_whose_arguments_cannot_be_kept_is_refused(local: LocalBackend) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {}}}}
    with pytest.raises(UpstreamRefused) as caught:
        await local.complete(calling("required", tools=[odd]))
    assert (caught.value.status, caught.value.param) == (400, "tools")


def tool(name: Any = "look", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "look"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("two words")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(), tool()]}, "tools"),
        ({"tools": [tool(f"t{number}") for number in range(MAX_TOOLS + 1)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "go"}}}, "tool_choice"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [tool()], "parallel_tool_calls": 5}, "parallel_tool_calls"),
    ],
)
def test_tools_that_cannot_be_are_refused_and_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_tools(Body(json.dumps(fields).encode()))
    assert str(caught.value.param).startswith(param)


TEN = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL])
@pytest.mark.parametrize(
    "marks", [("<tool_call>", "</tool_call>"), ("[TOOL_CALLS]",), ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")]
)
async def test_marks_may_be_tokens_of_any_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: TokenType, marks: tuple[str, ...]
) -> None:
    """As in the vocabularies of Qwen and Mistral: what a grammar asks for is one token, and its text is seen all the same."""
    tokens, scores, types = synthetic.vocabulary()
    more = tokens + [mark.encode() for mark in marks], scores + [0.0] * len(marks), types + [kind] * len(marks)
    monkeypatch.setattr(synthetic, "vocabulary", lambda: more)
    template = synthetic.CHAT_TEMPLATE + "{% if tools %}{{ tools | tojson }}" + "".join(marks) + "{% endif %}"
    monkeypatch.setattr(synthetic, "CHAT_TEMPLATE", template)
    path = synthetic.write_synthetic(tmp_path / "marked.gguf")
    async with running(path, context_tokens=1024) as backend:
        for parallel in (False, True):
            asked = calling("required", tools=[tool("f", parameters=TEN)], parallel_tool_calls=parallel, logprobs=True)
            choice = await answered(backend, asked)
            first = choice["message"]["tool_calls"][0]
            assert json.loads(first["function"]["arguments"])["x"] in range(10)
            said = [token["token"] for token in choice["logprobs"]["content"]]
            if kind is not TokenType.NORMAL and (kind is TokenType.CONTROL or marks[0].startswith("<")):
                assert marks[0] in said, "one token, not its letters"
