"""LlamaIndex as its users write it."""

import os

import httpx
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

BASE_URL = os.environ["GATEWAY_URL"].rstrip("/") + "/v1"
KEY = os.environ["GATEWAY_KEY"]
TEXTS = ["A runner carries a message", "Bread is baked from flour", "A runner carries a message"]


def test_embeddings_are_the_same_twice() -> None:
    model = OpenAILikeEmbedding(model_name="text-embedding-3-small", api_base=BASE_URL, api_key=KEY)
    first = model.get_text_embedding_batch(TEXTS)
    assert model.get_text_embedding_batch(TEXTS) == first
    assert first[0] == first[2] != first[1]
    assert model.get_query_embedding(TEXTS[1]) == first[1]


def test_a_chat_answers_whole_and_as_a_stream() -> None:
    model = OpenAILike(
        model="guide", api_base=BASE_URL, api_key=KEY, is_chat_model=True, temperature=0, max_tokens=12, max_retries=0
    )
    messages = [ChatMessage(role="user", content="Where does the road go?")]
    whole = model.chat(messages).message.content
    assert whole
    *_, last = model.stream_chat(messages)
    assert last.message.content == whole


def test_a_collection_answers_by_its_models_name_with_citations() -> None:
    """By default it calls legacy completions."""
    while httpx.get(os.environ["GATEWAY_URL"].rstrip("/") + "/health/ready").json()["status"] != "ready":
        pass
    for chat in (False, True):
        model = OpenAILike(model="handbook", api_base=BASE_URL, api_key=KEY, is_chat_model=chat, max_retries=0)
        assert "knotted cords. [1]" in model.complete("What is a quipu?").text
