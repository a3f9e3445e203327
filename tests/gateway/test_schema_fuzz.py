"""/schema describes every operation, and whatever a client makes of that description, there is a clear answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.openapi import METHODS, OPERATIONS
from tests.gateway.conftest import full_config, tiktoken_environment, wait_for_collection
from tests.running import Gateway, running

MAX_EXAMPLES = 30
"""For each operation and each way of generating. All of them together take about fifteen seconds."""

CONTEXT_TOKENS = 128
"""Small, so that no answer is long, whatever `max_tokens` says."""

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]

WAYS = [
    (method, path, mode)
    for (method, path), words in OPERATIONS.items()
    for mode in GenerationMode
    if words.keyed or mode is GenerationMode.POSITIVE  # the others take nothing that could be wrong
]

MODEL = "org/team:model-1"

MODELS = {
    "Chat": ["guide", "pirate", "handbook", "handbook-chat", "minilm"],
    "Completion": ["guide", MODEL, "pirate", "handbook", "minilm"],
    "Embedding": ["minilm", "text-embedding-3-small", "guide"],
}
"""Models for each body; the last one of each is the wrong one for it."""

HOT = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, synthetic_gguf: Path, minilm_gguf: Path) -> Iterator[Gateway]:
    """A gateway of its own: keys come and go in it."""
    home = tmp_path_factory.mktemp("fuzzed")
    config = full_config(home, synthetic_gguf, minilm_gguf)
    config["backends"][0]["context_tokens"] = CONTEXT_TOKENS
    with running(home, config, tiktoken_environment()) as gateway:
        wait_for_collection(gateway)
        yield gateway


@pytest.fixture(scope="module")
def document(fuzzed: Gateway) -> dict[str, Any]:
    with fuzzed.http as http:
        content: dict[str, Any] = http.get("/schema/openapi.json").json()
    return content


@pytest.fixture(scope="module")
def schema(document: dict[str, Any], fuzzed: Gateway) -> Any:
    """With names that exist, and with sizes that a small window holds: others are refused before anything happens."""
    few = {"type": "integer", "minimum": 1, "maximum": 3}
    narrowed = {"n": few, "max_tokens": few, "max_completion_tokens": few}
    components = {name: dict(schema) for name, schema in document["components"]["schemas"].items()}
    for name, models in MODELS.items():
        fields = components[name]["properties"]
        known = {field: schema for field, schema in narrowed.items() if field in fields}
        components[name]["properties"] = fields | known | {"model": {"enum": models}}
    loaded = schemathesis.openapi.from_dict(document | {"components": document["components"] | {"schemas": components}})
    loaded.config.update(base_url=fuzzed.url)
    return loaded


def send(gateway: Gateway, case: Case) -> None:
    response = case.call(headers={"authorization": f"Bearer {gateway.key}"}, timeout=20)
    case.validate_response(response, checks=CHECKS)
    assert response.status_code < 500 or response.status_code == 503, response.text  # 503: nothing to quote, say
    if response.status_code >= 400 and case.method != "HEAD":
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


@pytest.mark.parametrize(("method", "path", "mode"), WAYS, ids=str)
def test_every_answer_is_as_described_and_no_input_makes_a_500(
    fuzzed: Gateway, schema: Any, method: str, path: str, mode: GenerationMode
) -> None:
    """`positive` follows the schema, `negative` breaks it. Each case goes out as it is, then with ids that exist, or streamed."""
    with fuzzed.http as http:
        known_ids = {"key_id": http.post("/admin/keys", json={"name": "fuzzed"}).json()["id"], "model_id": MODEL}
    operation = schema[path][method.upper()]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=MAX_EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case) -> None:
        send(fuzzed, case)
        if known := known_ids.keys() & case.path_parameters.keys():
            case.path_parameters |= {name: known_ids[name] for name in known}
            send(fuzzed, case)
        if OPERATIONS[method, path].streams and isinstance(case.body, dict):
            case.body = case.body | {"stream": True}
            send(fuzzed, case)

    ask()


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    served = {(method, path) for path, item in document["paths"].items() for method in METHODS if method in item}
    assert served == set(OPERATIONS)
    for method, path in served:
        operation = document["paths"][path][method]
        assert operation["summary"]
        assert all(parameter["description"] for parameter in operation.get("parameters", ()))


@pytest.mark.parametrize("path", HOT)
def test_hot_routes_have_a_body_an_answer_and_errors(document: dict[str, Any], path: str) -> None:
    operation = document["paths"][path]["post"]
    assert operation["requestBody"]["required"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    body = document["components"]["schemas"][name]
    assert "model" in body["required"]
    assert set(body["required"]) <= set(body["examples"][0])
    assert body["additionalProperties"] is True
    kinds = {"application/json"} if path.endswith("embeddings") else {"application/json", "text/event-stream"}
    assert set(operation["responses"]["200"]["content"]) == kinds
    error = {"$ref": "#/components/schemas/Error"}
    failures = [answer for status, answer in operation["responses"].items() if int(status) >= 400]
    assert all(answer["content"]["application/json"]["schema"] == error for answer in failures)
    assert operation["security"] == [{"key": []}]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.parametrize("path", HOT)
def test_the_examples_of_hot_routes_work(fuzzed: Gateway, document: dict[str, Any], path: str) -> None:
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    with fuzzed.http as http:
        for example in document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]:
            answer = http.post(path, json=example)
            assert answer.status_code == 200, answer.text
