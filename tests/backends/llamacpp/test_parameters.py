"""OpenAI's bodies become what the engine is to do; the rest is refused by name."""

import json
from typing import Any

import pytest

from backends.errors import InvalidRequest
from backends.llamacpp.parameters import (
    NOT_SUPPORTED,
    Wanted,
    read_inputs,
    read_messages,
    read_prompts,
    read_wanted,
    text_of,
)
from backends.llamacpp.sampling import Sampling
from backends.wire import Body


def body(**fields: Any) -> Body:
    return Body(json.dumps(fields).encode())


def wanted(*, legacy: bool = False, **fields: Any) -> Wanted:
    return read_wanted(body(**fields), vocabulary=100, legacy=legacy)


def test_nothing_said_means_openais_defaults() -> None:
    got = wanted(seed=1)
    assert got == Wanted(Sampling(seed=1), (), None, "max_tokens", 1, stream=False, include_usage=False)
    assert (wanted(legacy=True).max_tokens, wanted(legacy=True, max_tokens=0).max_tokens) == (16, 0)


def test_everything_said_is_taken() -> None:
    got = wanted(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        repeat_penalty=1.1,
        logit_bias={"0": -100, "99": 100},
        seed=-1,
        stop=["a", "b"],
        max_tokens=1,
        max_completion_tokens=7,
        n=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    sampling = Sampling(0.5, 0.9, 40, 0.1, -2, 2, 1.1, {0: -100, 99: 100}, 0xFFFFFFFF)
    assert got == Wanted(sampling, ("a", "b"), 7, "max_completion_tokens", 3, stream=True, include_usage=True)


def test_without_a_seed_every_request_gets_another() -> None:
    assert len({wanted().sampling.seed for _ in range(5)}) > 1


def test_each_choice_has_a_seed_of_its_own() -> None:
    got = wanted(seed=0xFFFFFFFF)
    assert [got.sampling_of(index).seed for index in range(3)] == [0xFFFFFFFF, 0, 1]


def test_one_stop_may_be_a_string() -> None:
    assert wanted(stop="x").stops == ("x",)


@pytest.mark.parametrize("name", sorted(NOT_SUPPORTED))
def test_what_local_models_cannot_do_is_refused_by_name_and_harmless_values_are_not(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^'{name}' is not supported by this local model") as caught:
        wanted(**{name: {"something": "else"}})
    assert caught.value.param == name
    for harmless in (None, *NOT_SUPPORTED[name]):
        assert wanted(**{name: harmless}).choices == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {}}, "stream_options"),
        ({"logit_bias": {"100": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"logit_bias": {"١": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wanted(**fields)
    assert caught.value.param == param


def test_a_null_limit_does_not_hide_the_other_name_of_the_limit() -> None:
    assert wanted(max_completion_tokens=None, max_tokens=5).max_tokens == 5


def test_messages_become_plain_text_with_roles_a_template_knows() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ana"},
        {"role": "assistant", "content": None},
    ]
    assert read_messages(body(messages=messages)) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "ana"},
        {"role": "assistant", "content": ""},
    ]


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        (None, "messages", "missing_required_parameter"),
        ([], "messages", "invalid_value"),
        ("hi", "messages", "invalid_value"),
        (["hi"], "messages[0]", "invalid_value"),
        ([{"content": "x"}], "messages[0].role", "invalid_value"),
        ([{"role": "user", "content": "x"}, {"role": "robot", "content": "x"}], "messages[1].role", "invalid_value"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role", "invalid_value"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": 5}], "messages[0].content", "invalid_value"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]", "invalid_value"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type", "invalid_value"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "invalid_value"),
    ],
)
def test_messages_that_cannot_be_read_are_refused_and_the_place_is_named(
    messages: object, param: str, code: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_messages(body(messages=messages))
    assert (caught.value.param, caught.value.code) == (param, code)


def test_another_kind_of_part_is_refused_with_its_kind() -> None:
    with pytest.raises(InvalidRequest, match="reads text only, not 'input_audio'"):
        text_of([{"type": "input_audio"}], "messages[0].content")


@pytest.mark.parametrize(
    ("value", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], "b"], [[1], "b"]), ("", [""])],
)
def test_inputs_are_texts_or_token_ids(value: object, inputs: list[object]) -> None:
    assert read_inputs(body(input=value), "input", vocabulary=10) == inputs
    assert read_prompts(body(prompt=value), vocabulary=10) == inputs


def test_a_missing_prompt_is_an_empty_one() -> None:
    assert read_prompts(body(), vocabulary=10) == read_prompts(body(prompt=None), vocabulary=10) == [""]


@pytest.mark.parametrize("value", [[], 5, {"a": 1}, [[]], [True], [1.5], ["a", None], [10], [-1], [[1], [10]]])
def test_inputs_of_another_kind_and_foreign_token_ids_are_refused(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_inputs(body(input=value), "input", vocabulary=10)
    assert caught.value.param == "input"
