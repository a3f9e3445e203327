"""LangChain as its users write it; `base_url` and the key are all that differs."""

import os
from typing import Annotated, Any

import httpx
import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field, SecretStr

BASE_URL = os.environ["GATEWAY_URL"].rstrip("/") + "/v1"
KEY = SecretStr(os.environ["GATEWAY_KEY"])
TEXTS = ["A runner carries a message", "Bread is baked from flour", "A runner carries a message", "Ñandú"]


def hits() -> float:
    page = httpx.get(os.environ["GATEWAY_URL"].rstrip("/") + "/metrics").text
    rows = [line for line in page.splitlines() if line.startswith('chasqui_embedding_cache_items_total{result="hit"}')]
    return float(rows[0].rsplit(" ", 1)[1]) if rows else 0.0


NEEDS_ENCODINGS = pytest.mark.skipif(
    "TIKTOKEN_CACHE_DIR" not in os.environ, reason="tiktoken's encodings are not there (TIKTOKEN_CACHE_DIR)"
)


@pytest.mark.parametrize("check_length", [pytest.param(True, marks=NEEDS_ENCODINGS), False])
def test_embeddings_are_the_same_twice_and_the_second_time_from_the_cache(check_length: bool) -> None:
    """With the length check it posts token ids, as it does by default."""
    embeddings = OpenAIEmbeddings(
        base_url=BASE_URL, api_key=KEY, model="text-embedding-3-small", check_embedding_ctx_length=check_length
    )
    first = embeddings.embed_documents(TEXTS)
    before = hits()
    assert embeddings.embed_documents(TEXTS) == first
    assert hits() - before == len(TEXTS)
    assert first[0] == first[2] != first[1]
    assert embeddings.embed_query(TEXTS[1]) == first[1]
    assert len(first[0]) == 384


def chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=BASE_URL, api_key=KEY, model="guide", max_retries=0, **options)


def test_a_chat_answers_whole_and_as_a_stream() -> None:
    model = chat(temperature=0, max_completion_tokens=12)
    whole = model.invoke("Where does the road go?")
    streamed = list(model.stream("Where does the road go?"))
    assert whole.content
    assert "".join(str(chunk.content) for chunk in streamed) == whole.content
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 12


def wait_for_documents() -> None:
    while httpx.get(os.environ["GATEWAY_URL"].rstrip("/") + "/health/ready").json()["status"] != "ready":
        pass


def test_a_collection_answers_by_its_models_name_with_citations() -> None:
    wait_for_documents()
    model = ChatOpenAI(base_url=BASE_URL, api_key=KEY, model="handbook", include_response_headers=True)
    answer = model.invoke("What is a quipu?")
    assert "knotted cords. [1]" in str(answer.content)
    assert "quipu.md" in str(answer.content)
    url = f"{BASE_URL}/retrievals/{answer.response_metadata['headers']['x-chasqui-retrieval']}"
    told = httpx.get(url, headers={"authorization": f"Bearer {KEY.get_secret_value()}"}).json()
    assert "knotted cords" in told["passages"][0]["text"]
    streamed = "".join(str(chunk.content) for chunk in model.stream("What is a quipu?"))
    assert streamed == answer.content


class Journey(BaseModel):
    days: int = Field(ge=1, le=9)
    by: str = Field(max_length=8)


def test_structured_output_is_parsed() -> None:
    journey = chat(max_completion_tokens=200).with_structured_output(Journey, method="json_schema").invoke("How long?")
    assert isinstance(journey, Journey)


@tool
def look(place: Annotated[int, Field(ge=0, le=99)]) -> str:
    """Look at a place."""
    return f"place {place}"


def test_a_bound_tool_is_called() -> None:
    model = chat(max_completion_tokens=300).bind_tools([look], tool_choice="look", strict=True)
    answer = model.invoke("Look at the road")
    (call,) = answer.tool_calls
    assert call["name"] == "look"
    assert isinstance(call["args"]["place"], int)
    streamed = None
    for chunk in model.stream("Look at the road"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert streamed.tool_calls[0]["name"] == "look"
