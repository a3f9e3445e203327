"""What a request leaves behind, as an administrator sees it; and what is never kept."""

import csv
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.faults.upstream import Line, Received, Upstream, answer_of, chunk_of, playing
from tests.running import Gateway, running

CHAT = "/v1/chat/completions"
SECRET_WORDS = "the launch is on tuesday"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    def play(request: Received, line: Line) -> None:
        body = request.json
        if body.get("user") == "breaks":
            line.answer(500, b"{}")
        elif body.get("stream"):
            line.start_stream()
            line.event(chunk_of("four "))
            line.event(chunk_of("words", finish="stop"))
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            line.event({"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": usage})
            line.event("[DONE]")
            line.end_stream()
        else:
            line.answer(200, answer_of("four words"))

    with playing(play) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    config = {
        "backends": [
            {"name": "up", "engine": "openai", "base_url": upstream.base_url},
            {"name": "quote", "engine": "quote"},
        ],
        "models": [
            {
                "name": "gpt",
                "route": [{"backend": "up", "model": "real-gpt"}],
                "price": {"input_per_m": 2, "output_per_m": 8},
            },
            {"name": "free", "route": ["up"]},
            {"name": "wild/*", "route": [{"backend": "up", "model": "*"}]},
        ],
        "roles": [{"name": "default"}, {"name": "reader", "paths": ["/admin/requests*"]}],
    }
    with running(tmp_path_factory.mktemp("ledger"), config) as gateway:
        yield gateway


def asking(gateway: Gateway, key: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}, timeout=30)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt", "messages": [{"role": "user", "content": SECRET_WORDS}], **fields}


def ledger_of(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """A request's row, as soon as it is there."""
    deadline = time.monotonic() + 5
    with gateway.http as http:
        while True:
            answer = http.get(f"/admin/requests/{request_id}")
            if answer.status_code == 200:
                return dict(answer.json())
            assert time.monotonic() < deadline, answer.text


def test_a_request_is_in_the_ledger_with_whom_and_what_for_and_what_it_cost(gateway: Gateway) -> None:
    key = gateway.new_key(name="spender")
    with asking(gateway, key) as http:
        answer = http.post(CHAT, json=body(user="ann", metadata={"tags": ["team-a", "beta"]}))
    row = ledger_of(gateway, answer.headers["x-request-id"])
    usage = answer.json()["usage"]
    assert row["usage"]["total_tokens"] == usage["total_tokens"]
    assert row["cost_usd"] == pytest.approx((usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 8) / 1e6)
    assert (row["model"], row["backend"], row["status"], row["outcome"]) == ("gpt", "up", 200, "complete")
    assert (row["user"], row["tags"], row["role"], row["attempts"]) == ("ann", ["team-a", "beta"], "default", 1)
    assert row["total_ms"] >= row["first_byte_ms"] >= 0
    assert abs(row["created_at"] - time.time()) < 60
    assert row["content"] is None


def test_every_end_has_a_row(gateway: Gateway) -> None:
    key = gateway.new_key(limits=[{"per": "1h", "requests": 4}])
    with asking(gateway, key) as http:
        good = http.post(CHAT, json=body(stream=True))
        broken = http.post(CHAT, json=body(user="breaks"))
        unknown = http.post(CHAT, json=body(model="no such\0model"))
        wrong = http.post(CHAT, json=body(max_tokens="many"))
        wild = http.post(CHAT, json=body(model="wild/thing"))
        http.post(CHAT, json=body(model="free"))
        refused = http.post(CHAT, json=body())
    rows = [ledger_of(gateway, one.headers["x-request-id"]) for one in (good, broken, unknown, wrong, wild, refused)]
    assert [(row["status"], row["outcome"], row["error"]) for row in rows] == [
        (200, "complete", None),
        (502, "failed", "upstream_error"),
        (404, "failed", "model_not_found"),
        (400, "failed", "invalid_value"),
        (200, "complete", None),
        (429, "failed", "rate_limit_exceeded"),
    ]
    assert rows[0]["usage"]["total_tokens"] == 10
    assert rows[0]["stream"] is True
    assert rows[2]["model"] == "no such\N{REPLACEMENT CHARACTER}model"
    assert rows[4]["model"] == "wild/thing"
    assert [rows[place]["cost_usd"] for place in (1, 3, 5)] == [0, 0, 0]


def test_usage_is_reported_by_key_and_day_as_json_and_csv(gateway: Gateway) -> None:
    key = gateway.new_key(name="reported")
    with asking(gateway, key) as http:
        ids = [http.post(CHAT, json=body(user="=HYPERLINK()")).headers["x-request-id"] for _ in range(3)]
    rows = [ledger_of(gateway, one) for one in ids]
    with gateway.http as http:
        question = {"group_by": "key,model,day", "key": rows[0]["key"], "since": time.time() - 60}
        answer = http.get("/admin/usage", params=question).json()
        (sums,) = answer["data"]
        assert (sums["requests"], sums["model"], sums["day"]) == (3, "gpt", time.strftime("%Y-%m-%d", time.gmtime()))
        assert sums["cost_usd"] == pytest.approx(sum(row["cost_usd"] for row in rows))
        sheet = http.get("/admin/usage", params={"group_by": "user", "key": rows[0]["key"], "format": "csv"})
        assert sheet.headers["content-type"] == "text/csv; charset=utf-8"
        (line,) = csv.DictReader(io.StringIO(sheet.text))
        assert (line["user"], line["requests"]) == ("'=HYPERLINK()", "3")
        assert http.get("/admin/usage", params={"group_by": "secret"}).json()["error"]["param"] == "group_by"
        assert http.get("/admin/usage", params={"since": "soon"}).status_code == 400


def test_requests_are_filtered_and_paged(gateway: Gateway) -> None:
    key = gateway.new_key(name="paged")
    with asking(gateway, key) as http:
        ids = [
            http.post(CHAT, json=body(model=name)).headers["x-request-id"]
            for name in ("gpt", "free", "gpt", "free", "gpt")
        ]
    row = ledger_of(gateway, ids[-1])
    with gateway.http as http:
        first = http.get("/admin/requests", params={"key": row["key"], "limit": 2}).json()
        assert ([one["id"] for one in first["data"]], first["has_more"]) == (ids[:2:-1], True)
        assert (first["first_id"], first["last_id"]) == (ids[4], ids[3])
        rest = http.get("/admin/requests", params={"key": row["key"], "after": first["last_id"]}).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[2::-1], False)
        found = http.get("/admin/requests", params={"key": row["key"], "model": "free", "order": "asc"}).json()["data"]
        assert [one["id"] for one in found] == [ids[1], ids[3]]
        assert http.get("/admin/requests", params={"status": 418}).json()["data"] == []
        assert http.get("/admin/requests", params={"limit": 0}).status_code == 400
        assert http.get("/admin/requests", params={"after": "req_none"}).status_code == 404
        assert http.get("/admin/requests/req_none").status_code == 404


@pytest.mark.parametrize("stream", [False, True])
def test_contents_are_kept_for_keys_that_ask_for_it_and_nowhere_else(gateway: Gateway, stream: bool) -> None:
    quiet, kept = gateway.new_key(name="quiet"), gateway.new_key(name="kept", log_content="on")
    with asking(gateway, quiet) as http:
        silent = http.post(CHAT, json=body(stream=stream))
    assert ledger_of(gateway, silent.headers["x-request-id"])["content"] is None
    for file in gateway.home.rglob("*"):
        if file.is_file():
            assert SECRET_WORDS.encode() not in file.read_bytes(), file
    assert not any(SECRET_WORDS in line for line in gateway.log)
    with asking(gateway, kept) as http:
        spoken = http.post(CHAT, json=body(stream=stream, messages=[{"role": "user", "content": "keep this \0"}]))
    content = ledger_of(gateway, spoken.headers["x-request-id"])["content"]
    assert "keep this" in content["request"]
    assert ("words" in content["answer"], "[DONE]" in content["answer"]) == (True, stream)
    with gateway.http as http:
        assert "content" not in http.get("/admin/requests", params={"limit": 1}).json()["data"][0]


def test_feedback_is_given_by_the_key_that_asked_and_by_no_other(gateway: Gateway) -> None:
    mine, other = gateway.new_key(), gateway.new_key()
    with asking(gateway, mine) as http:
        request_id = http.post(CHAT, json=body()).headers["x-request-id"]
        said = http.post("/v1/feedback", json={"request_id": request_id, "stars": 2, "text": "hm"})
        assert (said.status_code, said.json()["stars"]) == (200, 2)
        assert http.post("/v1/feedback", json={"request_id": request_id, "stars": 6}).status_code == 400
        assert http.post("/v1/feedback", json={"request_id": "req_none", "stars": 5}).status_code == 404
        assert http.post("/admin/feedback", json={"request_id": request_id, "stars": 5}).status_code == 403
    with asking(gateway, other) as http:
        assert http.post("/v1/feedback", json={"request_id": request_id, "stars": 5}).status_code == 404
    assert ledger_of(gateway, request_id)["feedback"] == {"stars": 2, "text": "hm"}
    with gateway.http as http:
        assert http.post("/admin/feedback", json={"request_id": request_id, "stars": 4}).status_code == 200
    assert ledger_of(gateway, request_id)["feedback"] == {"stars": 4, "text": ""}


def test_only_whose_role_names_the_path_reads_the_ledger(gateway: Gateway) -> None:
    with asking(gateway, gateway.new_key()) as http:
        for path in ("/admin/requests", "/admin/usage", "/admin/audit", "/admin/roles"):
            assert http.get(path).status_code == 403
    with asking(gateway, gateway.new_key(role="reader")) as http:
        assert http.get("/admin/requests").status_code == 200
        assert http.get("/admin/usage").status_code == 403


def test_administrative_changes_leave_a_trail_without_secrets(gateway: Gateway) -> None:
    with gateway.http as http:
        made = http.post("/admin/keys", json={"name": "watched", "limits": [{"per": "1h", "requests": 5}]})
        key_id, secret = made.json()["id"], made.json()["key"]
        http.patch(f"/admin/keys/{key_id}", json={"disabled": True, "models": ["gpt"]})
        rotated = http.post(f"/admin/keys/{key_id}/rotate").json()["key"]
        http.delete(f"/admin/keys/{key_id}")
        trail = http.get("/admin/audit", params={"object_id": key_id}).json()["data"]
        everything = http.get("/admin/audit", params={"limit": 2}).json()
    assert [one["action"] for one in trail] == ["key.delete", "key.rotate", "key.update", "key.create"]
    assert {one["actor"] for one in trail} == {"env:admin"}
    assert trail[-1]["request_id"] == made.headers["x-request-id"]
    assert trail[2]["details"] == {"disabled": True, "narrowed": {"models": ["gpt"]}}
    assert trail[3]["details"]["limits"] == [{"per": "1h", "requests": 5}]
    assert (len(everything["data"]), everything["has_more"]) == (2, True)
    assert secret not in str(trail)
    assert rotated not in str(trail)


def test_the_roles_of_the_configuration_are_listed(gateway: Gateway) -> None:
    with gateway.http as http:
        roles = {one["id"]: one for one in http.get("/admin/roles").json()["data"]}
    assert set(roles) == {"default", "reader", "admin"}
    assert roles["reader"]["paths"] == ["/admin/requests*"]
