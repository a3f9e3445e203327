"""The JSON of a worker's answers."""

import base64

import numpy as np
import pytest

from backends.llamacpp.answers import Shape, embeddings_object
from backends.wire import Usage

USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}


def shape(*, legacy: bool = False, include_usage: bool = False) -> Shape:
    return Shape("id-1", 7, "m", legacy, include_usage)


def test_a_whole_chat_answer_has_openais_shape() -> None:
    assert shape().whole([("hi", "stop"), ("ho", "length")], Usage(2, 3)) == {
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
    }


def test_a_whole_legacy_answer_has_its_text_beside_the_index() -> None:
    answer = shape(legacy=True).whole([("hi", "stop")], Usage(2, 3))
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_streamed_choice_opens_speaks_and_ends(include_usage: bool) -> None:
    one = shape(include_usage=include_usage)
    chunks = [one.role_chunk(1), one.text_chunk(1, "hi"), one.finish_chunk(1, "stop")]
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
    assert one.text_chunk(0, "hi")["choices"] == [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": None}]
    assert one.finish_chunk(0, "length")["choices"][0] | {"index": 0} == {
        "index": 0,
        "text": "",
        "logprobs": None,
        "finish_reason": "length",
    }
    assert one.text_chunk(0, "")["object"] == "text_completion"


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
