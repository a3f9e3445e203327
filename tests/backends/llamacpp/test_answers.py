"""The JSON of a worker's answers."""

import base64

import numpy as np
import pytest

from backends.llamacpp.answers import Choice, Shape, embeddings_object, timings_object
from backends.llamacpp.sequences import NO_TIME, Likely, Timings
from backends.llamacpp.speaking import Spoken
from backends.llamacpp.tool_parser import CallPart
from backends.wire import Usage

USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}


def shape(*, legacy: bool = False, include_usage: bool = False) -> Shape:
    return Shape("id-1", 7, "m", legacy, include_usage)


def spoken(
    *parts: str | CallPart, finish: str | None = None, tokens: int = 1, likely: tuple[Likely, ...] = ()
) -> Spoken:
    return Spoken(parts, tokens, finish, likely, Timings(1, 2, 4.0, 3, 6.0))


def test_a_whole_chat_answer_has_openais_shape() -> None:
    assert shape().whole([Choice("hi"), Choice("ho", finish="length")], Usage(2, 3)) == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp_llama_cpp",
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": finish,
            }
            for index, (text, finish) in enumerate([("hi", "stop"), ("ho", "length")])
        ],
        "usage": USAGE,
        "timings": timings_object(NO_TIME),
    }


def test_a_whole_legacy_answer_has_its_text_beside_the_index() -> None:
    answer = shape(legacy=True).whole([Choice("hi")], Usage(2, 3))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_streamed_choice_opens_speaks_and_ends(include_usage: bool) -> None:
    one = shape(include_usage=include_usage)
    chunks = [one.role_chunk(1), *one.chunks(1, spoken("hi")), one.finish_chunk(1, spoken(finish="stop"))]
    assert [chunk["choices"][0] for chunk in chunks if chunk] == [
        {"index": 1, "delta": delta, "logprobs": None, "finish_reason": finish}
        for delta, finish in [
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"content": "hi"}, None),
            ({}, "stop"),
        ]
    ]
    assert {chunk["object"] for chunk in chunks if chunk} == {"chat.completion.chunk"}
    assert [chunk.get("usage", "absent") for chunk in chunks if chunk] == [None if include_usage else "absent"] * 3


def test_a_streamed_legacy_choice_has_no_opening() -> None:
    one = shape(legacy=True)
    assert one.role_chunk(0) is None
    (chunk,) = one.chunks(0, spoken("hi"))
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": None}]
    end = one.finish_chunk(0, spoken(finish="length"))
    assert end["choices"][0] == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
    }
    assert end["timings"]["predicted_per_second"] == 500


def test_a_call_streams_as_its_name_and_then_pieces_of_its_arguments() -> None:
    parts = [CallPart(0, "call_1", "look"), CallPart(0, arguments='{"a":'), CallPart(0, arguments="1}")]
    deltas = [chunk["choices"][0]["delta"]["tool_calls"] for chunk in shape().chunks(0, spoken(*parts))]
    assert deltas == [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
    ]


def test_a_whole_call_has_no_content_beside_it_unless_something_was_said() -> None:
    choice = Choice()
    choice.add(spoken(CallPart(0, "call_1", "look"), CallPart(0, arguments="{}"), finish="tool_calls"))
    (told,) = shape().whole([choice], Usage(2, 3))["choices"]
    assert told["finish_reason"] == "tool_calls"
    assert told["message"]["content"] is None
    assert told["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ]


def test_logprobs_are_there_when_wanted_in_both_shapes() -> None:
    likely = (Likely("é".encode()[:1], -0.5, ((b"a", -0.5), (b"b", -2.0))),)
    wanted = Shape("id-1", 7, "m", legacy=False, logprobs=True)
    (chunk,) = wanted.chunks(0, spoken(likely=likely))
    assert chunk["choices"][0]["delta"] == {"content": ""}
    assert chunk["choices"][0]["logprobs"]["content"] == [
        {
            "token": "\ufffd",
            "logprob": -0.5,
            "bytes": [0xC3],
            "top_logprobs": [
                {"token": "a", "logprob": -0.5, "bytes": [97]},
                {"token": "b", "logprob": -2.0, "bytes": [98]},
            ],
        }
    ]
    legacy = Shape("id-1", 7, "m", legacy=True, logprobs=True)
    (chunk,) = legacy.chunks(0, spoken("a", likely=(Likely(b"ab", -1.0, ((b"ab", -1.0),)), Likely(b"c", -2.0, (), 2))))
    assert chunk["choices"][0]["logprobs"] == {
        "tokens": ["ab", "c"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [{"ab": -1.0}, {}],
        "text_offset": [0, 2],
    }


def test_the_usage_chunk_has_no_choices() -> None:
    chunk = shape(include_usage=True).usage_chunk(Usage(2, 3))
    assert (chunk["choices"], chunk["usage"]) == ([], USAGE)


@pytest.mark.parametrize("as_base64", [False, True])
def test_vectors_come_in_order_as_numbers_or_as_little_endian_float32(as_base64: bool) -> None:
    vectors = [np.array([0.5, -1.0], np.float32), np.array([0.25, 2.0], np.float32)]
    answer = embeddings_object(vectors, model="e", base64=as_base64, tokens=[3, 4])
    got = [item["embedding"] for item in answer["data"]]
    if as_base64:
        got = [np.frombuffer(base64.b64decode(item), "<f4").tolist() for item in got]
    assert got == [[0.5, -1.0], [0.25, 2.0]]
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (answer["object"], answer["model"]) == ("list", "e")
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7, "prompt_tokens_by_input": [3, 4]}
