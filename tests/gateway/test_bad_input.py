"""Every input is hostile or unlucky. The answer is a clear error in OpenAI's shape: never a traceback, a 500 or a hang."""

import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.errors import MEANINGS
from tests.running import Gateway

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http as client:
        yield client


def check(answer: httpx.Response, status: int, code: str, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert "Traceback" not in answer.text
    assert answer.headers["x-request-id"].startswith("req_")
    return str(error["message"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"null", "invalid_json"),
        (b'{"model": "guide"} trailing', "invalid_json"),
        (b'{"model": "gu\xffide"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model":' + b"[" * 200 + b"]" * 200 + b"}", "invalid_value"),
        (
            b'{"model": "guide", "messages": [' + b"[" * 200 + b"]" * 200 + b'], "prompt": {}, "input": {}}',
            "invalid_value",
        ),
        (b'{"model": "guide", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "invalid_json"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings"])
def test_bodies_that_are_not_what_they_should_be(http: httpx.Client, path: str, body: bytes, code: str) -> None:
    answer = http.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in (code, "invalid_value", "missing_required_parameter")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 5}, "invalid_value", "model"),
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": "hello"}, "invalid_value", "messages"),
        ({"messages": ["hello"]}, "invalid_value", "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "invalid_value",
            "messages[0].content[0].type",
        ),
        ({"stream": "yes"}, "invalid_value", "stream"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_value", "temperature"),
        ({"top_p": -1}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"n": 129}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": -5}, "invalid_value", "max_tokens"),
        ({"max_completion_tokens": 1.5}, "invalid_value", "max_completion_tokens"),
        ({"max_tokens": 10**30}, "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop"),
        ({"stop": 5}, "invalid_value", "stop"),
        ({"seed": "x"}, "invalid_value", "seed"),
        ({"logit_bias": {"999999": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias"),
        ({"presence_penalty": 2.5}, "invalid_value", "presence_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "invalid_value", "tools[0].function.name"),
        ({"response_format": {"type": "json_object"}}, "invalid_value", "messages"),
        ({"grammar": "root ::= ("}, "invalid_value", "grammar"),
        ({"top_logprobs": 1}, "invalid_value", "top_logprobs"),
        ({"chat_template": "{{ messages }}"}, "invalid_value", "chat_template"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"collections": "handbook"}, "invalid_value", "collections"),
        ({"include": ["everything"]}, "invalid_value", "include"),
        ({"retrieval": {"top_k": 3}}, "invalid_value", "retrieval"),
        ({"collections": ["handbook"], "retrieval": {"top_k": 0}}, "invalid_value", "retrieval.top_k"),
        ({"collections": ["handbook"], "retrieval": {"rerank": True}}, "invalid_value", "retrieval.rerank"),
        ({"collections": ["handbook"], "retrieval": {"nonsense": 1}}, "invalid_value", "retrieval.nonsense"),
        ({"collections": ["handbook"], "retrieval": {"filters": {"type": "eq"}}}, "invalid_value", "filters.key"),
        ({"prompt": {"variables": {}}}, "invalid_value", "prompt"),
        ({"max_tokens": 5000}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "the road " * 4000}]}, "context_length_exceeded", "messages"),
        ({"model": "nothing"}, None, "model"),
        ({"model": "handbook", "messages": [{"role": "system", "content": "x"}]}, "invalid_value", "messages"),
        ({"model": "pirate", "prompt": {"variables": {"unknown": 1}}}, "invalid_value", None),
        ({"model": "pirate", "prompt": {"id": "other"}}, "invalid_value", "prompt.id"),
        ({"model": "minilm"}, "invalid_value", "model"),
        ({"model": "handbook", "messages": [{"role": "user", "content": " "}]}, "invalid_value", "messages"),
    ],
)
def test_chat_fields_that_are_missing_wrong_or_not_supported(
    http: httpx.Client, change: dict[str, Any], code: str | None, param: str | None
) -> None:
    body = {"model": "guide", "messages": HELLO, "max_tokens": 4} | change
    answer = http.post(CHAT, json=body)
    if code is None:
        check(answer, 404, "model_not_found", "model")
    else:
        check(answer, 400, code, param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_keeps_its_status_in_streams_too(http: httpx.Client, stream: bool) -> None:
    answer = http.post(CHAT, json={"model": "guide", "messages": HELLO, "max_tokens": 5000, "stream": stream})
    message = check(answer, 400, "context_length_exceeded", "messages")
    assert "2048" in message
    assert "5000" in message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input[0]"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [["a"]]}, "input[0]"),
        ({"input": [-1, 5]}, "input[0]"),
        ({"input": ["x"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 256}, "dimensions"),
        ({"dimensions": "many"}, "dimensions"),
        ({"model": "guide"}, "model"),
        ({"model": "handbook"}, "model"),
    ],
)
def test_embedding_fields_that_are_wrong(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    check(http.post("/v1/embeddings", json={"model": "minilm", "input": "x"} | change), 400, "invalid_value", param)


def test_dimensions_that_the_model_has_are_fine(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "minilm", "input": "x", "dimensions": 384})
    assert answer.status_code == 200


def test_an_input_over_the_window_is_refused_with_the_counts(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "minilm", "input": "word " * 2000})
    message = check(answer, 400, "context_length_exceeded", "input")
    assert "512" in message
    assert "2002" in message


def test_token_ids_that_are_no_text_are_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"model": "minilm", "input": [10**9]})
    check(answer, 400, "invalid_value", "input[0]")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer nonsense", "Basic dXNlcjpwdw==", "Bearer sk-0123456789ab-wrong"]
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("GET", "/v1/models"), ("GET", "/admin/keys"), ("POST", "/v1/embeddings")]
)
def test_no_key_or_a_bad_one(gateway: Gateway, header: str | None, method: str, path: str) -> None:
    headers = {} if header is None else {"authorization": header}
    with httpx.Client(base_url=gateway.url) as client:
        check(client.request(method, path, headers=headers), 401, "invalid_api_key")


def test_a_key_with_bytes_that_are_no_text_is_just_a_bad_key(gateway: Gateway) -> None:
    with httpx.Client(base_url=gateway.url) as client:
        answer = client.get("/v1/models", headers=[(b"authorization", b"Bearer \xff\xfe\xfd")])
    check(answer, 401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v1/rerank/x", "/admin", "/%00", "/v1/models/x%2F..%2Fy"])
def test_an_unknown_path(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] in ("not_found", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHAT), ("DELETE", "/v1/embeddings"), ("POST", "/v1/models"), ("PUT", "/admin/keys")]
)
def test_a_wrong_method_says_which_are_right(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]


def test_a_body_over_the_limit(http: httpx.Client) -> None:
    check(http.post(CHAT, content=b"x" * (26 * 1024 * 1024)), 413, "request_too_large")


def test_heads_over_64_kb(http: httpx.Client) -> None:
    check(http.get("/v1/models", headers={"x-filler": "x" * 70_000}), 431, "headers_too_large")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
    ],
)
def test_nonsense_on_the_socket_leaves_the_gateway_alive(gateway: Gateway, http: httpx.Client, data: bytes) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        answer = connection.recv(4096)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_value"
    assert http.get("/health").status_code == 200


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(gateway: Gateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\ncontent-length: 31457280\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_in_the_middle_of_its_body_disturbs_nobody(
    gateway: Gateway, http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\ncontent-length: 1000\r\n\r\n"
        connection.sendall(head.encode() + b'{"model"')
    while 'status="499"' not in http.get("/metrics").text:
        assert http.get("/v1/models").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_lone_surrogates_and_odd_characters_do_not_break_anything(http: httpx.Client) -> None:
    raw = b'{"model": "guide", "max_tokens": 2, "messages": [{"role": "user", "content": "\\ud800 \\u0000 \\u2028"}]}'
    assert http.post(CHAT, content=raw).status_code in (200, 400)


def test_unknown_fields_are_no_reason_to_refuse(http: httpx.Client) -> None:
    body = {
        "model": "guide",
        "messages": HELLO,
        "max_tokens": 2,
        "store": False,
        "metadata": {"a": "b"},
        "x_future": [1],
    }
    assert http.post(CHAT, json=body).status_code == 200


def test_no_status_is_given_that_the_table_does_not_have(http: httpx.Client) -> None:
    assert {meaning.status for meaning in MEANINGS.values()} >= {400, 401, 403, 404, 413, 429, 431, 502, 503, 504}


def test_control_tokens_in_a_message_stay_text(http: httpx.Client) -> None:
    """`<|end|>` written by a user must not end the user's turn: as text it has more tokens than the one control token."""

    def tokens(content: str) -> int:
        body = {"model": "guide", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return int(http.post(CHAT, json=body).json()["usage"]["prompt_tokens"])

    assert tokens("<|end|>") - tokens("x") >= 5


def test_the_error_body_is_json_whatever_was_accepted(http: httpx.Client) -> None:
    answer = http.get("/nowhere", headers={"accept": "text/html"})
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text)["error"]["code"] == "not_found"


def test_a_long_question_is_searched_by_what_the_embedding_model_can_read(http: httpx.Client) -> None:
    question = "nothing of this matters " * 300 + "What was the station where runners waited called?"
    answer = http.post(CHAT, json={"model": "handbook", "messages": [{"role": "user", "content": question}]})
    assert answer.status_code == 200
    assert "chaskiwasi" in answer.text


def test_health_answers_head_requests(http: httpx.Client) -> None:
    assert http.head("/health").status_code == 200
    assert http.head("/health/ready").status_code == 200


def test_too_many_answers_of_one_request_are_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "guide", "prompt": ["a"] * 100, "n": 100, "max_tokens": 1})
    check(answer, 400, "invalid_value", "n")
