"""Bodies keep their bytes; chunks are read leniently."""

import json

import pytest

from backends.errors import InvalidRequest
from backends.wire import Body, Usage, read_chunk, rename_model

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"a":tru}', "not valid JSON"),
        (b'{"a":01}', "not valid JSON"),
        (b'{"a":1}x', "not valid JSON"),
        (b'{"a":"\\ud800"}', "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a":"\xff"}', r"not valid UTF-8 \(byte 6\)"),
        (b'{"a":' + DEEP + b"}", "nested too deeply"),
    ],
)
def test_what_is_not_one_json_object_is_invalid_json(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        Body(raw)
    assert caught.value.code == "invalid_json"


def test_an_unchanged_body_keeps_its_values_bytes() -> None:
    body = Body(b'{ "temperature": 1.10, "x": "\\u00e9", "model":"m" , "n": 123456789012345678901234567890 }')
    raw = b'{"temperature":1.10,"x":"\\u00e9","model":"m","n":123456789012345678901234567890}'
    assert body.raw == raw
    assert body.without("absent").raw == raw
    assert list(body) == ["temperature", "x", "model", "n"]


@pytest.mark.parametrize("second", ['"model"', '"m\\u006fdel"'])
def test_of_a_name_given_twice_only_the_value_that_was_judged_goes_on(second: str) -> None:
    body = Body(b'{"model":"forbidden",' + second.encode() + b':"allowed"}')
    assert (body.read("model", str), body.raw) == ("allowed", b'{"model":"allowed"}')


def test_a_changed_body_keeps_the_bytes_of_all_other_values() -> None:
    body = Body(b'{"a": 1.10, "model": "old", "b": "\\u00e9", "c": 123456789012345678901234567890}')
    assert body.replace(model="new", d=[1]).raw == (
        b'{"a":1.10,"model":"new","b":"\\u00e9","c":123456789012345678901234567890,"d":[1]}'
    )
    assert body.without("a", "c").raw == b'{"model":"old","b":"\\u00e9"}'
    assert body.read("model", str) == "old"


def test_a_name_given_twice_keeps_its_last_value() -> None:
    assert Body(b'{"n":1,"n":2}').read("n", int) == 2


@pytest.mark.parametrize("raw", [b"{}", b'{"n":null}', b'{"n": null }'])
def test_missing_and_null_give_the_default(raw: bytes) -> None:
    assert Body(raw).read("n", int, 3) == 3
    assert Body(raw).read("n", int) is None
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'n'") as caught:
        Body(raw).require("n", int)
    assert (caught.value.param, caught.value.code) == ("n", "missing_required_parameter")


@pytest.mark.parametrize(
    ("raw", "type_", "param"),
    [
        (b'{"n":"1"}', int, "n"),
        (b'{"n":true}', int, "n"),
        (b'{"n":[1,"x"]}', list[int], "n[1]"),
        (b'{"n":[{"a":1}]}', list[dict[str, str]], "n[0]"),
    ],
)
def test_a_wrong_type_is_refused_and_the_place_is_named(raw: bytes, type_: type[object], param: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid value for 'n") as caught:
        Body(raw).read("n", type_)
    assert caught.value.param == param


def test_usage_adds_up() -> None:
    assert Usage(3, 4).total_tokens == 7


def test_a_chunk_gives_model_choices_and_usage() -> None:
    chunk = read_chunk(
        b'{"model":"m","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},"choices":'
        b'[{"index":1,"delta":{"content":"abc"},"finish_reason":"stop"},{"text":"de"}]}'
    )
    assert (chunk.model, chunk.usage, chunk.failed) == ("m", Usage(1, 2), False)
    assert [(choice.index, choice.finish_reason, choice.size_bytes) for choice in chunk.choices or ()] == [
        (1, "stop", 3),
        (0, None, 2),
    ]


@pytest.mark.parametrize("what", ["content", "refusal", "reasoning_content"])
def test_every_kind_of_generated_text_counts(what: str) -> None:
    assert read_chunk(b'{"choices":[{"delta":{"%b":"four"}}]}' % what.encode()).choices[0].size_bytes == 4


def test_a_chunk_with_tool_calls_gives_its_choices_and_their_size() -> None:
    chunk = read_chunk(
        b'{"model":"m","choices":[{"index":1,"delta":{"content":"abc","tool_calls":[1]},"finish_reason":"tool_calls"}]}'
    )
    assert [(choice.index, choice.finish_reason, choice.size_bytes) for choice in chunk.choices or ()] == [
        (1, "tool_calls", 6)
    ]


@pytest.mark.parametrize("choice", ['{"delta":{"content":"ñandú"}}', '{"text":"ñandú"}'])
def test_generated_text_is_measured_in_bytes(choice: str) -> None:
    assert read_chunk(f'{{"choices":[{choice}]}}'.encode()).choices[0].size_bytes == len("ñandú".encode())


def test_fields_of_an_unexpected_shape_read_as_absent() -> None:
    chunk = read_chunk(b'{"model":7,"choices":{"a":1},"usage":{"prompt_tokens":"many"},"error":null}')
    assert (chunk.model, chunk.choices, chunk.usage, chunk.failed) == (None, None, None, False)
    assert read_chunk(b'{"model":"m","usage":[]}').model == "m"


@pytest.mark.parametrize(
    ("error", "failed"), [(b'{"message":"no"}', True), (b'"no"', True), (b"null", False), (b"{}", True)]
)
def test_an_error_field_makes_a_chunk_a_failure(error: bytes, failed: bool) -> None:
    assert read_chunk(b'{"error":%b}' % error).failed is failed


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"{", b'{"x":' + DEEP + b"}"])
def test_a_chunk_that_is_no_object_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_chunk(data)


def test_a_deep_chunk_with_a_field_of_an_unexpected_shape_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        read_chunk(b'{"model":7,"x":' + DEEP + b"}")


def test_renaming_changes_the_top_level_model_alone() -> None:
    data = b'{"id":"1","model":"theirs","choices":[{"model":"theirs","n":1.10}]}'
    assert rename_model(data, "ours") == b'{"id":"1","model":"ours","choices":[{"model":"theirs","n":1.10}]}'
    assert json.loads(rename_model(data, 'a"b'))["model"] == 'a"b'


@pytest.mark.parametrize("data", [b'{ "model" : "ours" }', b'{ "id": 1 }'])
def test_nothing_to_rename_leaves_the_bytes_alone(data: bytes) -> None:
    assert rename_model(data, "ours") is data
