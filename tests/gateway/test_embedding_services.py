"""Similarity, search among cached texts, the cache's own pages: through a whole gateway with MiniLM."""

import io
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import Gateway, running

MODEL = "text-embedding-3-small"
WORDS = ["The runner carries a message", "A messenger runs along the road", "Bread is baked from flour"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, minilm_gguf: Path) -> Iterator[Gateway]:
    config = {
        "embedding_cache": {"keep_text": True},
        "backends": [{"name": "minilm", "engine": "llama_cpp", "model": str(minilm_gguf), "serves": "embeddings"}],
        "models": [{"name": MODEL, "route": ["minilm"]}],
        "roles": [
            {"name": "default", "limits": [{"per": "1h", "tokens": 1_000_000}]},
            {"name": "others"},
        ],
    }
    with running(tmp_path_factory.mktemp("embeddings"), config) as gateway:
        yield gateway


def ask(house: Gateway, path: str, key: str | None = None, headers: Any = None, **fields: Any) -> httpx.Response:
    with house.http as http:
        if key is not None:
            http.headers["authorization"] = f"Bearer {key}"
        return http.post(path, json={"model": MODEL} | fields, headers=headers or {})


def good(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_strings_are_compared_each_with_each(house: Gateway) -> None:
    for metric in ("cosine", "dot", "euclidean"):
        told = good(ask(house, "/v1/similarity", input=[*WORDS, WORDS[0]], metric=metric))
        matrix = told["similarities"]
        assert told["metric"] == metric
        own = 0.0 if metric == "euclidean" else 1.0
        assert all(math.isclose(matrix[place][place], own, abs_tol=2e-3) for place in range(4))
        assert math.isclose(matrix[0][3], own, abs_tol=2e-3)
        assert matrix[0][1] == pytest.approx(matrix[1][0])
        assert (matrix[0][1] > matrix[0][2]) is (metric != "euclidean")


def test_pairs_are_compared_with_each_other_and_agree_with_the_matrix(house: Gateway) -> None:
    matrix = good(ask(house, "/v1/similarity", input=WORDS))["similarities"]
    told = good(ask(house, "/v1/similarity", pairs=[[WORDS[0], WORDS[1]], [WORDS[2], WORDS[0]]]))
    assert told["similarities"] == pytest.approx([matrix[0][1], matrix[2][0]], abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ["a"], "pairs": [["a", "b"]]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"pairs": [["a"]]}, "pairs[0]"),
        ({"pairs": [["a", "b", "c"]]}, "pairs[0]"),
        ({"input": ["a"], "metric": "manhattan"}, "metric"),
    ],
)
def test_what_cannot_be_compared_is_refused(house: Gateway, fields: dict[str, Any], param: str) -> None:
    answer = ask(house, "/v1/similarity", **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert str(error["param"]).split("[")[0] == param.split("[", maxsplit=1)[0]


def test_similarity_is_cached_and_counted_as_embeddings_are(house: Gateway) -> None:
    key = house.new_key()
    first = ask(house, "/v1/similarity", key, input=["never seen before", "nor this"])
    again = ask(house, "/v1/similarity", key, input=["never seen before", "nor this"])
    assert (first.headers["x-chasqui-cache"], again.headers["x-chasqui-cache"]) == ("miss", "hit")
    assert good(first) == good(again)
    assert good(first)["usage"]["prompt_tokens"] > 5
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in (first, again)]
    assert left[1] < left[0] < 1_000_000


def test_cached_texts_are_found_by_their_meaning_and_by_keys_of_the_role_only(house: Gateway) -> None:
    ours, colleague, stranger = house.new_key(), house.new_key(), house.new_key(role="others")
    good(ask(house, "/v1/embeddings", ours, input=WORDS))
    for key in (ours, colleague):
        found = good(ask(house, "/v1/embeddings/search", key, query="who brings the news on foot", k=2))["data"]
        assert {one["text"] for one in found} == set(WORDS[:2])
        assert found[0]["score"] >= found[1]["score"]
    assert good(ask(house, "/v1/embeddings/search", stranger, query="who brings the news", k=5))["data"] == []
    nothing_kept = good(ask(house, "/v1/embeddings/search", ours, query="who brings the news on foot", k=1000))["data"]
    assert "who brings the news on foot" not in {one["text"] for one in nothing_kept}, "queries are not kept"


def test_who_wants_nothing_stored_or_everything_anew_gets_it(house: Gateway) -> None:
    def cached(text: str, control: str) -> str:
        answer = ask(house, "/v1/embeddings", headers={"cache-control": control}, input=text)
        assert answer.status_code == 200
        return str(answer.headers["x-chasqui-cache"])

    assert [cached("not to be stored", "no-store") for _ in range(2)] == ["miss", "miss"]
    assert cached("not to be stored", "") == "miss"
    assert cached("anew", "") == "miss"
    assert cached("anew", "max-age=0, No-Cache") == "miss"
    assert cached("anew", "") == "hit"


def test_usage_says_what_came_from_the_cache(house: Gateway) -> None:
    good(ask(house, "/v1/embeddings", input="known before"))
    usage = good(ask(house, "/v1/embeddings", input=["known before", "and this is new"]))["usage"]
    assert 0 < usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_the_cache_can_be_looked_at_and_emptied(house: Gateway) -> None:
    good(ask(house, "/v1/embeddings", input=["alpha one", "alpha two", "beta"]))
    with house.http as http:
        good(ask(house, "/v1/embeddings/search", query="x"))  # writes what waits
        shown = http.get("/admin/cache").json()
        (model,) = shown["data"]
        assert (model["id"], model["vectors"] > 2, model["bytes"]) == ("minilm", True, model["vectors"] * 384 * 4)
        assert model["misses"] > 0
        assert shown["memory"]["vectors"] > 0
        listed = http.get("/admin/cache/texts", params={"prefix": "alpha", "limit": 1}).json()
        assert listed["has_more"] is True
        rest = http.get("/admin/cache/texts", params={"prefix": "alpha", "after": listed["last_id"]}).json()
        assert [one["text"] for one in (*listed["data"], *rest["data"])] == ["alpha one", "alpha two"]
        assert http.get("/admin/cache/texts", params={"after": "nonsense"}).status_code == 400
        assert http.delete("/admin/cache").status_code == 400
        assert http.delete("/admin/cache", params={"prefix": "alpha"}).json()["vectors"] == 2
        assert ask(house, "/v1/embeddings", input="alpha one").headers["x-chasqui-cache"] == "miss"
        assert ask(house, "/v1/embeddings", input="beta").headers["x-chasqui-cache"] == "hit"
        assert http.delete("/admin/cache", params={"everything": "true"}).json()["vectors"] > 0
        assert ask(house, "/v1/embeddings", input="beta").headers["x-chasqui-cache"] == "miss"
        http.headers["authorization"] = f"Bearer {house.new_key()}"
        assert http.get("/admin/cache").status_code == http.delete("/admin/cache").status_code == 403


def test_without_kept_texts_there_is_nothing_to_search(tmp_path: Path, minilm_gguf: Path) -> None:
    config = {
        "backends": [{"name": "minilm", "engine": "llama_cpp", "model": str(minilm_gguf), "serves": "embeddings"}],
        "models": [{"name": MODEL, "route": ["minilm"]}],
        "roles": [{"name": "default"}],
    }
    with running(tmp_path, config) as gateway:
        answer = ask(gateway, "/v1/embeddings/search", query="x")
    assert answer.status_code == 400
    assert "keep_text" in answer.json()["error"]["message"]


TEXT = """# Relay runners

A chasqui carried messages along the Inca roads. Each ran about 2.5 kilometres! Dr. Alva says so.

- The station was called a chaskiwasi.
- It lay beside
  the road.
"""
SENTENCES = [
    "# Relay runners",
    "A chasqui carried messages along the Inca roads.",
    "Each ran about 2.5 kilometres!",
    "Dr. Alva says so.",
    "- The station was called a chaskiwasi.",
    "- It lay beside the road.",
]


def upload(
    house: Gateway, key: str | None = None, name: str = "runners.md", data: bytes = TEXT.encode(), **options: Any
) -> httpx.Response:
    headers = options.pop("headers", {})
    with house.http as http:
        if key is not None:
            http.headers["authorization"] = f"Bearer {key}"
        return http.post(
            "/v1/embeddings/files", files={"file": (name, data)}, data={"model": MODEL} | options, headers=headers
        )


def unpacked(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        return json.loads(archive.read("embeddings.json"))


def test_every_sentence_of_a_file_is_embedded_and_the_same_file_answers_at_once(house: Gateway) -> None:
    key = house.new_key()
    first, again = upload(house, key), upload(house, key)
    assert first.headers["content-type"] == "application/zip"
    rows = unpacked(first.content)
    assert [row["sentence"] for row in rows] == SENTENCES
    told = good(ask(house, "/v1/embeddings", key, input=SENTENCES))
    assert [row["embedding"] for row in rows] == [one["embedding"] for one in told["data"]]
    assert sum(row["tokens"] for row in rows) == told["usage"]["prompt_tokens"]
    assert again.content == first.content
    assert again.headers["x-chasqui-cache"] == "hit"


@pytest.mark.parametrize("form", ["records", "split", "index", "columns", "values", "table"])
def test_the_vectors_come_in_any_of_pandas_forms(house: Gateway, form: str) -> None:
    told = unpacked(upload(house, json_format=form).content)
    sentences: dict[str, Any] = {
        "records": lambda: [row["sentence"] for row in told],
        "split": lambda: [row[told["columns"].index("sentence")] for row in told["data"]],
        "index": lambda: [told[str(number)]["sentence"] for number in range(6)],
        "columns": lambda: [told["sentence"][str(number)] for number in range(6)],
        "values": lambda: [row[0] for row in told],
        "table": lambda: [row["sentence"] for row in told["data"]],
    }
    assert sentences[form]() == SENTENCES
    if form == "table":
        assert {"name": "tokens", "type": "integer"} in told["schema"]["fields"]


def test_progress_is_shown_and_the_zip_fetched_by_those_who_share_it(house: Gateway) -> None:
    ours, colleague, stranger = house.new_key(), house.new_key(), house.new_key(role="others")
    text = " ".join(f"Sentence number {number} runs along the road." for number in range(200)).encode()
    answer = upload(house, ours, "long.txt", text, headers={"accept": "text/event-stream"})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert [event["done"] for event in events[:-1]] == [64, 128, 192, 200]
    assert all(event["total"] == 200 for event in events[:-1])
    assert answer.text.rstrip().endswith("data: [DONE]")
    url = events[-1]["url"]
    for key, status in ((ours, 200), (colleague, 200), (stranger, 404)):
        with house.http as http:
            http.headers["authorization"] = f"Bearer {key}"
            fetched = http.get(url)
        assert fetched.status_code == status
        if status == 200:
            assert len(unpacked(fetched.content)) == 200
    again = upload(house, ours, "long.txt", text, headers={"accept": "text/event-stream"})
    assert [json.loads(line[6:])["url"] for line in again.text.splitlines() if line.startswith("data: {")] == [url]


def test_a_file_whose_sentences_are_all_known_needs_no_progress(house: Gateway) -> None:
    key = house.new_key()
    assert upload(house, key).status_code == 200
    answer = upload(house, key, json_format="split", headers={"accept": "text/event-stream"})
    (told,) = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert told["object"] == "embedding.file"


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"model": ""}, "missing_required_parameter", "model"),
        ({"json_format": "csv"}, "invalid_value", "json_format"),
        ({"data": b""}, None, None),
        ({"name": "photo.xyz", "data": b"\x00\x01\x02"}, None, None),
        ({"name": "lies.pdf", "data": b"this is no PDF"}, None, None),
        ({"data": b"... --- !!!"}, "invalid_value", "file"),
    ],
)
def test_files_that_cannot_be_embedded_are_refused(
    house: Gateway, options: dict[str, Any], code: str | None, param: str | None
) -> None:
    for headers in ({}, {"accept": "text/event-stream"}):
        answer = upload(house, headers=headers, **options)
        error = answer.json()["error"]
        assert answer.status_code in (400, 422), answer.text
        assert code is None or (error["code"], error["param"]) == (code, param)


def test_no_store_leaves_nothing_behind_and_everything_can_be_deleted(house: Gateway) -> None:
    key = house.new_key()
    data = b"Only for this moment. Nothing of it stays."
    for control, cache in (("no-store", "miss"), ("no-store", "miss"), ("", "miss"), ("no-cache", "miss"), ("", "hit")):
        answer = upload(house, key, "moment.txt", data, headers={"cache-control": control})
        assert answer.headers["x-chasqui-cache"] == cache
    assert upload(house, key, headers={"cache-control": "no-store", "accept": "text/event-stream"}).status_code == 400
    with house.http as http:
        assert http.get("/admin/cache").json()["files"]["count"] > 0
        assert http.delete("/admin/cache", params={"everything": "true"}).status_code == 200
        assert http.get("/admin/cache").json()["files"] == {"count": 0, "bytes": 0}
    assert upload(house, key, "moment.txt", data).headers["x-chasqui-cache"] == "miss"


def test_who_has_nothing_left_has_nothing_read(house: Gateway) -> None:
    key = house.new_key(limits=[{"per": "1h", "requests": 1}])
    assert upload(house, key).status_code == 200
    for headers in ({}, {"accept": "text/event-stream"}):
        assert upload(house, key, "broken.pdf", b"no PDF", headers=headers).status_code == 429


@pytest.mark.parametrize("params", [{"older_than_s": -1}, {"older_than_s": 10**30}, {"prefix": ""}, {"model": "a\0b"}])
def test_what_means_nothing_deletes_nothing(house: Gateway, params: dict[str, Any]) -> None:
    with house.http as http:
        assert http.delete("/admin/cache", params=params).status_code == 400


def test_a_body_without_a_file_is_refused(house: Gateway) -> None:
    with house.http as http:
        for answer in (
            http.post("/v1/embeddings/files", json={"model": MODEL}),
            http.post("/v1/embeddings/files", data={"model": MODEL}, files={"other": ("a.txt", b"x")}),
            http.post("/v1/embeddings/files", data={"model": MODEL, "dimensions": "4"}),
        ):
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
