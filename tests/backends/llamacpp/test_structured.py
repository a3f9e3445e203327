"""Answers that keep to JSON, a schema or a grammar, and how likely their tokens were: real workers, a model that babbles."""

import json
import math
from typing import Any

import pytest

from backends.base import Call
from backends.errors import InvalidRequest, UpstreamRefused
from backends.llamacpp.backend import LocalBackend
from backends.llamacpp.grammar_check import GrammarCheck
from backends.llamacpp.grammars import MAX_BYTES, MAX_DEPTH, MAX_REFERENCES, Source, schema_source
from tests.backends.llamacpp.local import chat, events, legacy, texts

pytestmark = pytest.mark.anyio

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 3, "maximum": 42},
        "roads": {"type": "array", "items": {"enum": ["high", "low"]}, "minItems": 1, "maxItems": 2},
        "next": {"anyOf": [{"$ref": "#/$defs/end"}, {"type": "null"}]},
    },
    "required": ["name", "age", "roads", "next"],
    "additionalProperties": False,
    "$defs": {"end": {"const": "end"}},
}


def held_to(schema: Any, **fields: Any) -> Call:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    return chat(**({"response_format": wanted, "max_tokens": 200, "temperature": 1.0} | fields))


@pytest.mark.parametrize("seed", range(5))
async def test_an_answer_keeps_to_its_schema_however_it_is_sampled(local: LocalBackend, seed: int) -> None:
    (text,) = await texts(local, held_to(PERSON, seed=seed))
    person = json.loads(text)
    assert set(person) == {"name", "age", "roads", "next"}
    assert len(person["name"]) <= 5
    assert 3 <= person["age"] <= 42
    assert person["roads"]
    assert set(person["roads"]) <= {"high", "low"}
    assert person["next"] in ("end", None)


async def test_a_stream_keeps_to_its_schema_too_and_each_choice_by_itself(local: LocalBackend) -> None:
    said = {0: "", 1: ""}
    ends = []
    for chunk in await events(local, held_to(PERSON, seed=4, n=2, stream=True)):
        for choice in chunk["choices"]:
            said[choice["index"]] += choice["delta"].get("content") or ""
            ends += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert all(json.loads(text)["age"] in range(3, 43) for text in said.values())
    assert ends == ["stop", "stop"]
    assert said[0] != said[1]


async def test_json_is_any_object(local: LocalBackend) -> None:
    asked = chat("say JSON", response_format={"type": "json_object"}, max_tokens=200, temperature=1.0, seed=1)
    answer = json.loads((await local.complete(asked)).body)["choices"][0]
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["message"]["content"]), dict)
    else:  # babble found no end: as far as it goes it is an object
        assert answer["message"]["content"].lstrip().startswith("{")


async def test_json_has_to_be_spoken_of(local: LocalBackend) -> None:
    assert await refused(local, chat("hi", response_format={"type": "json_object"})) == "messages"


async def test_a_grammar_in_llama_cpps_words_is_kept(local: LocalBackend) -> None:
    grammar = 'root ::= answer "!"\nanswer ::= "yes" | "no" [a-c]+\n'
    for path in (legacy, chat):
        (text,) = await texts(local, path("shall we", grammar=grammar, temperature=1.0, seed=3, max_tokens=100))
        assert text == "yes!" or (text.startswith("no") and set(text[2:-1]) <= set("abc"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"grammar": "root ::= ("}, "grammar"),
        ({"grammar": "start ::= x"}, "grammar"),
        ({"grammar": "x" * (MAX_BYTES + 1)}, "grammar"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"response_format": []}, "response_format"),
    ],
)
async def test_what_is_no_grammar_is_refused(local: LocalBackend, fields: dict[str, Any], param: str) -> None:
    assert await refused(local, chat("JSON", **fields)) == param


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": []},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"not": {}},
        {"if": {"type": "string"}, "then": {"minLength": 1}},
        {"type": "nonsense"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/nowhere"},
        {"type": "string", "pattern": "(?=ahead)a"},
        True,
        "object",
    ],
)
async def test_a_schema_that_cannot_be_met_or_is_not_understood_is_refused_and_the_worker_lives(
    local: LocalBackend, schema: Any
) -> None:
    pid = local.pid
    assert await refused(local, held_to(schema)) == "response_format.json_schema.schema"
    assert await texts(local, chat())
    assert local.pid == (pid or local.pid)


async def refused(backend: LocalBackend, asked: Call) -> str | None:
    with pytest.raises(UpstreamRefused) as caught:
        await backend.complete(asked)
    assert caught.value.status == 400
    return caught.value.param


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(MAX_DEPTH), "levels deep"),
        ({"anyOf": [{"$ref": "#/$defs/a"}] * (MAX_REFERENCES + 1), "$defs": {"a": {}}}, "references"),
        ({"const": "x" * MAX_BYTES}, "bytes"),
    ],
)
def test_schemas_have_limits(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        schema_source(schema, "response_format")


async def test_a_grammar_that_takes_too_long_costs_its_own_process_and_nothing_else() -> None:
    check = GrammarCheck(limit_s=0.0)
    try:
        with pytest.raises(InvalidRequest, match=r"more than 0 s"):
            await check.grammar(Source("gbnf", 'root ::= "a"', "grammar"))
        check._limit_s = 30.0
        assert await check.grammar(Source("gbnf", 'root ::= "a"', "grammar"))
    finally:
        await check.aclose()


async def test_a_process_that_somebody_else_killed_costs_nobody_anything() -> None:
    check = GrammarCheck(limit_s=30.0)
    source = Source("gbnf", 'root ::= "a"', "grammar")
    try:
        assert await check.grammar(source)
        assert check._child is not None
        check._child.kill()
        check._known.clear()
        assert await check.grammar(source)
    finally:
        await check.aclose()


def chain(terminals: int) -> str:
    """A grammar that llguidance takes apart by calling itself, once for each terminal."""
    rules = [f"R{number}: R{number + 1}" for number in range(terminals)]
    return "\n".join(["start: R0", *rules, f'R{terminals}: "a"'])


@pytest.mark.parametrize("terminals", [300, 1000, 3000, 4000])
async def test_a_grammar_of_any_depth_is_kept_or_refused_and_kills_no_worker(
    local: LocalBackend, terminals: int
) -> None:
    await texts(local, chat())
    pid = local.pid
    try:
        (text,) = await texts(local, chat(grammar=f"%llguidance {{}}\n{chain(terminals)}"))
        assert text == "a"
    except UpstreamRefused as refused:
        assert (refused.status, refused.param) == (400, "grammar")
    assert await texts(local, chat())
    assert local.pid == pid


async def test_logprobs_tell_how_likely_tokens_were(local: LocalBackend) -> None:
    asked = chat(logprobs=True, top_logprobs=3, max_tokens=6)
    choice = json.loads((await local.complete(asked)).body)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert len(tokens) == 6
    for token in tokens:
        top = [other["logprob"] for other in token["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert token["logprob"] == top[0], "greedy takes the likeliest"
        assert sum(map(math.exp, top)) <= 1.0001
        assert bytes(token["bytes"]).decode() == token["token"]


async def test_all_tokens_together_are_certain(local: LocalBackend) -> None:
    """With a grammar of two words, their probabilities add up to one."""
    asked = chat(grammar='root ::= [ab] "!"', logprobs=True, top_logprobs=20, max_tokens=1, temperature=1.0)
    (token,) = json.loads((await local.complete(asked)).body)["choices"][0]["logprobs"]["content"]
    assert math.isclose(sum(math.exp(other["logprob"]) for other in token["top_logprobs"]), 1.0, abs_tol=1e-3)


async def test_tokens_of_a_stop_string_have_no_logprobs(local: LocalBackend) -> None:
    (whole,) = await texts(local, chat())
    stop = whole.split()[2]
    asked = chat(logprobs=True, stop=[f" {stop}"])
    choice = json.loads((await local.complete(asked)).body)["choices"][0]
    tokens = [token["token"] for token in choice["logprobs"]["content"]]
    assert "".join(tokens) == choice["message"]["content"]
    assert len(tokens) == 2


async def test_logprobs_stream_with_their_text(local: LocalBackend) -> None:
    asked = chat(logprobs=True, top_logprobs=1, max_tokens=5, stream=True)
    chunks = [chunk["choices"][0] for chunk in await events(local, asked)]
    scored = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
    assert "".join(token["token"] for token in scored) == "".join(c["delta"].get("content") or "" for c in chunks)
    assert len(scored) == 5


async def test_legacy_logprobs_have_their_own_shape(local: LocalBackend) -> None:
    choice = json.loads((await local.complete(legacy("who", logprobs=2, max_tokens=3))).body)["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert [len(top) for top in logprobs["top_logprobs"]] == [2, 2, 2]
    assert logprobs["text_offset"][0] == 0


async def test_offsets_of_legacy_logprobs_go_through_the_whole_stream(local: LocalBackend) -> None:
    offsets, texts_ = [], []
    for chunk in await events(local, legacy("who", logprobs=0, max_tokens=6, stream=True)):
        if (logprobs := chunk["choices"][0]["logprobs"]) is not None:
            offsets += logprobs["text_offset"]
            texts_ += logprobs["tokens"]
    assert offsets == [sum(map(len, texts_[:place])) for place in range(6)]


async def test_what_was_cached_of_a_prompt_counts_once_for_all_its_answers(local: LocalBackend) -> None:
    words = "the road runs over the high bridge and the stone mountain"
    for known in (False, True):
        usage = json.loads((await local.complete(chat(words, n=4, temperature=1.0))).body)["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert cached == (usage["prompt_tokens"] - 1 if known else 0)
    last = (await events(local, chat(words, n=3, stream=True, stream_options={"include_usage": True})))[-1]
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == last["usage"]["prompt_tokens"] - 1


@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-7])
async def test_a_temperature_next_to_zero_is_zero(local: LocalBackend, temperature: float) -> None:
    assert await texts(local, chat(temperature=temperature)) == await texts(local, chat())


async def test_an_end_that_a_grammar_wants_is_an_end(local: LocalBackend) -> None:
    asked = chat(grammar='root ::= "a" "b"?', ignore_eos=True, temperature=1.0, max_tokens=10)
    assert (await texts(local, asked))[0] in ("a", "ab")


async def test_timings_are_told_at_the_end(local: LocalBackend) -> None:
    whole = json.loads((await local.complete(chat(max_tokens=7))).body)
    timings = whole["timings"]
    assert timings["predicted_n"] == 7
    assert timings["prompt_n"] + timings["cache_n"] == whole["usage"]["prompt_tokens"]
    assert timings["predicted_per_second"] > 0
    last = (await events(local, chat(max_tokens=7, stream=True)))[-1]
    assert last["timings"]["predicted_n"] == 7
