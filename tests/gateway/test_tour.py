"""The main jobs, each the whole way through real parts: the official SDK, a socket, a worker process, llama.cpp, SQLite."""

import base64
import json

import numpy as np
import openai
import pytest

from tests.running import Gateway

ASK = [{"role": "user", "content": "Tell me about the road."}]


def test_a_chat_completion_has_text_usage_and_the_name_that_was_asked_for(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        answer = client.chat.completions.create(model="guide", messages=ASK, max_tokens=12, temperature=0)
    assert answer.model == "guide"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_gives_the_same_text_as_the_whole_answer(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        options = {"model": "guide", "messages": ASK, "max_tokens": 30, "temperature": 0}
        whole = client.chat.completions.create(**options)
        with client.chat.completions.create(**options, stream=True) as stream:
            chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert {chunk.model for chunk in chunks} == {"guide"}


def test_usage_comes_in_a_stream_only_when_it_is_asked_for(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        options = {
            "model": "guide",
            "messages": ASK,
            "max_tokens": 3,
            "stream": True,
            "extra_body": {"ignore_eos": True},
        }
        with client.chat.completions.create(**options) as stream:
            assert all(chunk.choices for chunk in stream)
        with client.chat.completions.create(**options, stream_options={"include_usage": True}) as stream:
            last = list(stream)[-1]
    assert last.choices == []
    assert last.usage.completion_tokens == 3


def test_a_seed_repeats_an_answer_and_another_seed_does_not(gateway: Gateway) -> None:
    with gateway.sdk() as client:

        def text(seed: int) -> str:
            answer = client.chat.completions.create(
                model="guide", messages=ASK, max_tokens=40, temperature=1.5, seed=seed
            )
            return answer.choices[0].message.content or ""

        assert text(7) == text(7)
        assert len({text(seed) for seed in range(5)}) > 1


def test_several_choices_are_numbered_and_counted(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        answer = client.chat.completions.create(model="guide", messages=ASK, max_tokens=5, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens <= 15


def test_a_stop_string_ends_the_text_before_itself(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        options = {"model": "guide", "messages": ASK, "max_tokens": 60, "temperature": 0}
        text = client.chat.completions.create(**options).choices[0].message.content
        stop = text[10:16]
        stopped = client.chat.completions.create(**options, stop=stop).choices[0]
    assert stopped.message.content == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_legacy_completions_answer_strings_lists_and_streams(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        one = client.completions.create(model="guide", prompt="the road", max_tokens=6, temperature=0)
        two = client.completions.create(model="guide", prompt=["the road", "a river"], max_tokens=6, temperature=0)
        with client.completions.create(
            model="guide", prompt="the road", max_tokens=6, temperature=0, stream=True
        ) as stream:
            streamed = "".join(chunk.choices[0].text for chunk in stream)
        default = client.completions.create(model="guide", prompt="the road", seed=3)
    assert one.object == "text_completion"
    assert [choice.index for choice in two.choices] == [0, 1]
    assert one.choices[0].text == two.choices[0].text == streamed
    assert default.usage.completion_tokens <= 16


@pytest.mark.anyio
async def test_the_asynchronous_client_chats_streams_and_embeds(gateway: Gateway) -> None:
    async with gateway.async_sdk() as client:
        answer = await client.chat.completions.create(model="guide", messages=ASK, max_tokens=4, temperature=0)
        assert answer.choices[0].message.content
        text = ""
        async with await client.chat.completions.create(
            model="guide", messages=ASK, max_tokens=4, temperature=0, stream=True
        ) as stream:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text
        legacy = await client.completions.create(model="guide", prompt="the", max_tokens=2, temperature=0)
        assert legacy.choices[0].text
        embedded = await client.embeddings.create(model="minilm", input="hello")
        assert len(embedded.data[0].embedding) == 384
        assert "guide" in [model.id async for model in client.models.list()]


def test_embeddings_are_computed_once_and_come_from_the_cache_after_that(gateway: Gateway) -> None:
    texts = ["A text that no other test sends.", "Another one."]
    with gateway.sdk() as client:
        first = client.embeddings.with_raw_response.create(model="text-embedding-3-small", input=texts)
        second = client.embeddings.with_raw_response.create(model="text-embedding-3-small", input=texts)
        third = client.embeddings.with_raw_response.create(model="minilm", input=[*texts, "And one that is new."])
    assert first.headers["x-chasqui-cache"] == "miss"
    assert second.headers["x-chasqui-cache"] == "hit"
    assert third.headers["x-chasqui-cache"] == "partial"
    vectors = [item.embedding for item in first.parse().data]
    assert [item.embedding for item in second.parse().data] == vectors
    assert [item.embedding for item in third.parse().data][:2] == vectors
    assert second.parse().usage.prompt_tokens == first.parse().usage.prompt_tokens > 0
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)


def test_embeddings_mean_something(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        data = client.embeddings.create(
            model="minilm", input=["How do I reset my password?", "password reset instructions", "It is sunny today"]
        ).data
    a, b, c = (np.array(item.embedding) for item in data)
    assert a @ b > 0.7 > 0.3 > a @ c


def test_float_and_base64_carry_the_same_numbers(gateway: Gateway) -> None:
    with gateway.http as http:
        body = {"model": "minilm", "input": "the same text twice"}
        floats = http.post("/v1/embeddings", json=body | {"encoding_format": "float"}).json()["data"][0]["embedding"]
        coded = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert np.array_equal(np.array(floats, np.float32), np.frombuffer(base64.b64decode(coded), "<f4"))


def test_token_ids_embed_like_the_text_they_stand_for(gateway: Gateway, tiktoken_dir: object) -> None:
    """LangChain posts ids of cl100k."""
    ids = [15339, 1917]  # "hello world"
    with gateway.sdk() as client:
        text = client.embeddings.create(model="minilm", input="hello world").data[0].embedding
        assert client.embeddings.create(model="minilm", input=ids).data[0].embedding == text
        assert client.embeddings.create(model="minilm", input=[ids, ids]).data[1].embedding == text


def test_a_collection_answers_by_model_name_with_the_passage_and_its_source(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        answer = client.chat.completions.with_raw_response.create(
            model="handbook",
            messages=[{"role": "user", "content": "What was the station where runners waited called?"}],
        )
    content = answer.parse().choices[0].message.content
    assert "chaskiwasi" in content.split("\n")[0]
    assert "[1]" in content
    assert "relay.md" in content.split("Sources:")[1]
    assert answer.headers["x-chasqui-retrieval"].startswith("ret_")
    assert answer.headers["x-chasqui-backend"] == "quote"


def test_a_collection_answers_in_streams_and_legacy_completions_too(gateway: Gateway) -> None:
    question = "What did a quipu record?"
    with gateway.sdk() as client:
        with client.chat.completions.create(
            model="handbook", messages=[{"role": "user", "content": question}], stream=True
        ) as stream:
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        legacy = client.completions.create(model="handbook", prompt=question).choices[0].text
    assert "census" in streamed
    assert legacy == streamed


def test_a_quotation_comes_as_often_as_it_is_asked_for(gateway: Gateway) -> None:
    question = [{"role": "user", "content": "What did a quipu record?"}]
    with gateway.sdk() as client:
        whole = client.chat.completions.create(model="handbook", messages=question, n=2)
        with client.chat.completions.create(model="handbook", messages=question, n=2, stream=True) as stream:
            seen = [(choice.index, choice.delta.content or "") for chunk in stream for choice in chunk.choices]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="handbook", messages=question, n=10**9)
    assert [choice.index for choice in whole.choices] == [0, 1]
    for index in (0, 1):
        assert "".join(text for number, text in seen if number == index) == whole.choices[index].message.content


def test_passages_go_into_the_prompt_of_a_real_model(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        plain = client.chat.completions.create(model="guide", messages=ASK, max_tokens=2).usage.prompt_tokens
        grounded = client.chat.completions.create(model="handbook-chat", messages=ASK, max_tokens=2).usage.prompt_tokens
    assert grounded > plain + 100


def test_a_prompt_template_is_a_model(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        plain = client.chat.completions.create(model="guide", messages=ASK, max_tokens=9, temperature=0)
        pirate = client.chat.completions.create(model="pirate", messages=ASK, max_tokens=9)
        soft = client.chat.completions.create(
            model="pirate",
            messages=ASK,
            max_tokens=9,
            extra_body={"prompt": {"variables": {"tone": "soft and gentle"}}},
        )
        legacy = client.completions.create(model="pirate", prompt="hello", max_tokens=3)
        again = client.chat.completions.create(model="pirate", messages=ASK, max_tokens=9)
    assert pirate.usage.prompt_tokens > plain.usage.prompt_tokens
    assert soft.usage.prompt_tokens > pirate.usage.prompt_tokens
    assert pirate.choices[0].message.content == again.choices[0].message.content  # its params set temperature 0
    assert pirate.model == "pirate"
    assert legacy.usage.prompt_tokens > 20


def test_models_list_exactly_what_the_key_may_send(gateway: Gateway) -> None:
    everything = {
        "guide",
        "text-embedding-3-small",
        "minilm",
        "handbook",
        "handbook-chat",
        "pirate",
        "org/team:model-1",
    }
    with gateway.sdk() as client:
        assert {model.id for model in client.models.list()} == everything
        assert client.models.retrieve("org/team:model-1").id == "org/team:model-1"
    with gateway.sdk(gateway.new_key(role="only-guide")) as client:
        assert [model.id for model in client.models.list()] == ["guide"]
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("handbook")
    with gateway.sdk(gateway.new_key(role="no-documents")) as client:
        assert {model.id for model in client.models.list()} == everything - {"handbook", "handbook-chat"}


def test_metrics_and_health_tell_of_the_requests(gateway: Gateway) -> None:
    with gateway.sdk() as client:
        client.chat.completions.create(model="guide", messages=ASK, max_tokens=2)
    with gateway.http as http:
        del http.headers["authorization"]
        text = http.get("/metrics").text
        assert http.get("/health").json()["status"] == "ok"
        ready = http.get("/health/ready").json()
    assert (
        'chasqui_requests_total{backend="chat",model="guide",operation="chat",outcome="complete",status="200"}' in text
    )
    assert 'chasqui_tokens_total{model="guide",type="output"}' in text
    assert ready["status"] == "ready"
    assert ready["backends"]["chat"] == "ready"


def test_every_answer_has_an_id_of_our_own(gateway: Gateway) -> None:
    with gateway.http as http:
        for path in ("/health", "/nowhere", "/v1/models"):
            assert http.get(path, headers={"x-request-id": "mine"}).headers["x-request-id"].startswith("req_")


def test_the_schema_page_works_without_a_network(gateway: Gateway) -> None:
    with gateway.http as http:
        page = http.get("/schema").text
        document = http.get("/schema/openapi.json").json()
    assert "/v1/chat/completions" in page
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "post" in document["paths"]["/v1/embeddings"]
    assert json.dumps(document)
