"""The openai SDK's files and vector stores, unmodified, against a real gateway."""

import contextlib
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.retrieval import samples
from tests.running import Gateway, running

FACTS = {
    "heights.md": "# Heights\n\nThe pass of Abra Malaga lies at 4316 metres.\n\n# Rivers\n\nThe Urubamba flows north.\n",
    "wool.txt": "Vicuna wool is the finest of all, and may be shorn every third year only.",
    "meals.csv": "day,meal\nmonday,quinoa soup\ntuesday,potato stew\n",
}


@contextmanager
def store_of(client: openai.OpenAI, **files: bytes) -> Iterator[Any]:
    """A store with these files, read; removed at the end."""
    store = client.vector_stores.create(name="test")
    made = []
    try:
        for name, data in files.items():
            uploaded = client.files.create(file=(name.replace("__", "."), data), purpose="assistants")
            made.append(uploaded.id)
            client.vector_stores.files.create_and_poll(uploaded.id, vector_store_id=store.id)
        yield store
    finally:
        client.vector_stores.delete(store.id)
        for id_ in made:
            client.files.delete(id_)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.sdk(gateway.new_key(role="default")) as client:
        yield client


@pytest.fixture
def stranger(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with gateway.sdk(gateway.new_key(role="readers")) as client:
        yield client


def test_the_whole_life_of_a_vector_store(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(
        name="andes",
        description="facts",
        metadata={"team": "geo"},
        expires_after={"anchor": "last_active_at", "days": 3},
    )
    assert (store.object, store.status, store.file_counts.total) == ("vector_store", "completed", 0)
    assert store.metadata == {"team": "geo"}
    assert store.expires_at is not None
    assert store.expires_at == store.last_active_at + 3 * 86_400 if store.last_active_at else False
    uploaded = client.files.create(file=("heights.md", FACTS["heights.md"].encode()), purpose="assistants")
    assert (uploaded.object, uploaded.bytes, uploaded.filename) == ("file", len(FACTS["heights.md"]), "heights.md")
    static: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}
    member = client.vector_stores.files.create_and_poll(
        uploaded.id, vector_store_id=store.id, attributes={"kind": "geo", "year": 2024}, chunking_strategy=static
    )
    assert (member.status, member.last_error) == ("completed", None)
    assert member.chunking_strategy is not None
    assert member.chunking_strategy.to_dict() == static
    found = client.vector_stores.search(store.id, query="How high is the pass of Abra Malaga?")
    assert found.data[0].filename == "heights.md"
    assert "4316" in found.data[0].content[0].text
    assert 0 <= found.data[0].score <= 1
    assert found.data[0].attributes == {"kind": "geo", "year": 2024}
    content = client.vector_stores.files.content(uploaded.id, vector_store_id=store.id)
    assert "Urubamba" in "".join(part.text or "" for part in content.data)
    assert client.files.content(uploaded.id).read() == FACTS["heights.md"].encode()
    changed = client.vector_stores.update(store.id, name="peaks", metadata={"team": "hills"}, expires_after=None)
    assert (changed.name, changed.metadata, changed.expires_at) == ("peaks", {"team": "hills"}, None)
    assert client.vector_stores.retrieve(store.id).name == "peaks"
    assert client.vector_stores.retrieve(store.id).usage_bytes > 0
    assert client.vector_stores.files.delete(uploaded.id, vector_store_id=store.id).deleted
    assert client.vector_stores.search(store.id, query="Abra Malaga").data == []
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)
    assert client.files.delete(uploaded.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(uploaded.id)


def test_upload_and_poll_and_batches(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[(name, text.encode()) for name, text in FACTS.items()]
    )
    assert (batch.status, batch.file_counts.completed, batch.file_counts.total) == ("completed", 3, 3)
    names = {one.id for one in client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)}
    assert names == {one.id for one in client.vector_stores.files.list(store.id)}
    one = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("more.txt", b"Alpacas hum."))
    assert one.status == "completed"
    found = client.vector_stores.search(store.id, query=["what do alpacas do", "potato stew"])
    assert {"more.txt", "meals.csv"} <= {match.filename for match in found.data[:3]}
    assert (
        client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id).object
        == "vector_store.files_batch"
    )
    client.vector_stores.delete(store.id)


def test_lists_have_cursors(client: openai.OpenAI) -> None:
    stores = [client.vector_stores.create(name=f"page {number}") for number in range(5)]
    mine = {store.id for store in stores}
    assert [one.id for one in client.vector_stores.list(limit=2) if one.id in mine] == [one.id for one in stores[::-1]]
    first = client.vector_stores.list(limit=2, order="asc", after=stores[0].id)
    assert [one.id for one in first.data] == [stores[1].id, stores[2].id]
    back = client.vector_stores.list(limit=10, order="asc", before=stores[1].id)
    assert stores[0].id in [one.id for one in back.data]
    assert stores[2].id not in [one.id for one in back.data]
    for store in stores:
        client.vector_stores.delete(store.id)


@pytest.mark.parametrize("how", ["taken out", "deleted"])
def test_a_list_goes_on_behind_what_has_gone_since_it_was_shown(client: openai.OpenAI, how: str) -> None:
    made = [client.files.create(file=(f"{n}.txt", b"words"), purpose="assistants").id for n in range(5)]
    store = client.vector_stores.create(file_ids=made)
    seen = []
    for one in client.vector_stores.files.list(store.id, limit=2):
        seen.append(one.id)
        if how == "taken out":
            client.vector_stores.files.delete(one.id, vector_store_id=store.id)
        client.files.delete(one.id)
    assert sorted(seen) == sorted(made)
    assert client.vector_stores.files.list(store.id).data == []
    client.vector_stores.delete(store.id)


def test_filters_choose_before_the_search_and_starve_nothing(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    files = [
        client.files.create(file=(f"{n}.txt", f"Runner {n} rests at station {n}.".encode()), purpose="assistants")
        for n in range(12)
    ]
    batch = client.vector_stores.file_batches.create_and_poll(
        store.id,
        files=[{"file_id": one.id, "attributes": {"number": n, "odd": bool(n % 2)}} for n, one in enumerate(files)],
    )
    assert batch.file_counts.completed == 12

    def names(filters: Any) -> set[str]:
        return {
            one.filename
            for one in client.vector_stores.search(store.id, query="runner", filters=filters, max_num_results=50)
        }

    assert names({"type": "eq", "key": "number", "value": 7}) == {"7.txt"}
    assert names(
        {
            "type": "and",
            "filters": [{"type": "gte", "key": "number", "value": 9}, {"type": "eq", "key": "odd", "value": True}],
        }
    ) == {"9.txt", "11.txt"}
    assert names({"type": "nin", "key": "number", "value": list(range(1, 12))}) == {"0.txt"}
    client.vector_stores.files.update(files[3].id, vector_store_id=store.id, attributes={"number": 100})
    assert names({"type": "gt", "key": "number", "value": 50}) == {"3.txt"}
    with pytest.raises(openai.BadRequestError, match="eq, ne"):
        names({"type": "like", "key": "number", "value": 1})
    client.vector_stores.delete(store.id)


@pytest.mark.parametrize(
    ("name", "data", "code", "words"),
    [
        ("empty.txt", b"", "invalid_file", "empty"),
        ("locked.pdf", samples.encrypted_pdf(), "invalid_file", "password"),
        ("broken.docx", b"PK\x03\x04 not really", "invalid_file", "docx"),
        ("garbage.pdf", bytes(range(256)) * 20, "invalid_file", "cannot be read"),
        ("really-a-pdf.txt", samples.pdf(["words"]), "invalid_file", "extension"),
        ("program.exe", b"MZ\x00\x01", "unsupported_file", "kind"),
        ("noextension", b"some words", "unsupported_file", "extension"),
        ("binary.md", b"\x00\x01\x02" * 100, "invalid_file", "binary"),
    ],
)
def test_a_bad_file_says_what_is_wrong_with_it_and_disturbs_no_other(
    client: openai.OpenAI, name: str, data: bytes, code: str, words: str
) -> None:
    store = client.vector_stores.create()
    good = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("good.txt", b"Condors circle."))
    bad = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=(name, data))
    assert good.status == "completed"
    assert bad.status == "failed"
    assert bad.last_error is not None
    assert bad.last_error.code == code
    assert words in bad.last_error.message
    assert client.vector_stores.retrieve(store.id).file_counts.failed == 1
    assert [one.filename for one in client.vector_stores.search(store.id, query="condors").data] == ["good.txt"]
    client.vector_stores.delete(store.id)


def test_a_bomb_is_refused_and_the_gateway_lives(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    bad = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("bomb.xlsx", samples.zip_bomb_xlsx(300 * 2**20))
    )
    assert bad.last_error is not None
    assert "unpacks to" in bad.last_error.message
    client.vector_stores.delete(store.id)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.txt", "..\\..\\x.txt", "/abs/olute.txt", "a\u202etxt.exe.txt", "x" * 400 + ".txt"]
)
def test_a_name_is_never_more_than_a_name(client: openai.OpenAI, name: str) -> None:
    uploaded = client.files.create(file=(name, b"Words to find."), purpose="assistants")
    assert "/" not in uploaded.filename
    assert "\\" not in uploaded.filename
    assert "\u202e" not in uploaded.filename
    assert len(uploaded.filename) <= 255
    assert uploaded.filename.endswith(".txt")
    client.files.delete(uploaded.id)


def test_nobody_sees_what_belongs_to_another_role(
    gateway: Gateway, client: openai.OpenAI, stranger: openai.OpenAI
) -> None:
    with store_of(client, secret__txt=b"The code word is chuspa.") as store:
        file_id = client.vector_stores.files.list(store.id).data[0].id
        refused = [
            lambda: stranger.vector_stores.retrieve(store.id),
            lambda: stranger.vector_stores.search(store.id, query="code word"),
            lambda: stranger.vector_stores.delete(store.id),
            lambda: stranger.vector_stores.update(store.id, name="mine"),
            lambda: stranger.vector_stores.files.list(store.id),
            lambda: stranger.vector_stores.files.content(file_id, vector_store_id=store.id),
            lambda: stranger.vector_stores.files.delete(file_id, vector_store_id=store.id),
            lambda: stranger.files.retrieve(file_id),
            lambda: stranger.files.content(file_id),
            lambda: stranger.files.delete(file_id),
            lambda: stranger.vector_stores.create(file_ids=[file_id]),
            lambda: stranger.chat.completions.create(
                model="guide",
                messages=[{"role": "user", "content": "code word?"}],
                extra_body={"collections": [store.id]},
            ),
        ]
        for ask in refused:
            with pytest.raises(openai.NotFoundError):
                ask()
        assert store.id not in [one.id for one in stranger.vector_stores.list()]
        assert file_id not in [one.id for one in stranger.files.list()]
        with gateway.sdk() as administrator:
            assert store.id in [one.id for one in administrator.vector_stores.list()]


def test_collections_of_the_configuration_are_listed_and_read_only(gateway: Gateway, client: openai.OpenAI) -> None:
    declared = next(one for one in client.vector_stores.list() if one.name == "handbook")
    assert declared.file_counts.completed == 3
    assert client.vector_stores.retrieve("handbook").id == declared.id
    names = {one.to_dict()["filename"] for one in client.vector_stores.files.list(declared.id)}
    assert {str(name).rsplit("/", 1)[-1] for name in names} == {"relay.md", "quipu.md", "bread.txt"}
    assert client.vector_stores.search("handbook", query="knotted cords").data[0].filename.endswith("quipu.md")
    for change in (
        lambda: client.vector_stores.delete(declared.id),
        lambda: client.vector_stores.update(declared.id, name="mine"),
    ):
        with pytest.raises(openai.BadRequestError, match="configuration"):
            change()
    with gateway.sdk(gateway.new_key(role="no-documents")) as outsider:
        assert "handbook" not in [one.name for one in outsider.vector_stores.list()]
        with pytest.raises(openai.NotFoundError):
            outsider.vector_stores.search("handbook", query="knotted cords")


def test_collections_of_the_configuration_are_read_anew_for_administrators_only(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match="administrators"):
        client.post("/vector_stores/handbook/reindex", cast_to=object)
    with store_of(client, own__txt=b"The role's own words.") as store:
        client.post(f"/vector_stores/{store.id}/reindex", cast_to=object)
    with gateway.sdk() as administrator:
        administrator.post("/vector_stores/handbook/reindex", cast_to=object)
        while administrator.vector_stores.retrieve("handbook").file_counts.in_progress:
            pass
        assert administrator.vector_stores.retrieve("handbook").file_counts.completed == 3


def test_a_question_is_searched_for_as_it_is_where_no_model_is_there_to_rewrite_it(client: openai.OpenAI) -> None:
    found = client.vector_stores.search("handbook", query="knotted cords", rewrite_query=True)
    assert found.to_dict()["search_query"] == ["knotted cords"]
    assert found.data[0].filename.endswith("quipu.md")


def test_what_is_wrong_with_a_request_is_named(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    wrong: list[tuple[str, Any]] = [
        ("metadata", lambda: client.vector_stores.create(metadata={str(n): "x" for n in range(17)})),
        ("expires_after", lambda: client.vector_stores.create(expires_after={"anchor": "created_at", "days": 1})),  # type: ignore[typeddict-item]
        ("max_num_results", lambda: client.vector_stores.search(store.id, query="x", max_num_results=51)),
        ("query", lambda: client.vector_stores.search(store.id, query="  ")),
        ("file_id", lambda: client.vector_stores.files.create(store.id, file_id=None)),  # type: ignore[arg-type]
        ("limit", lambda: client.vector_stores.list(limit=101)),
        ("purpose", lambda: client.files.create(file=("a.txt", b"x"), purpose="nonsense")),  # type: ignore[arg-type]
        ("ranker", lambda: client.vector_stores.search(store.id, query="x", ranking_options={"ranker": "minilm"})),  # type: ignore[typeddict-item]
    ]
    for word, ask in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            ask()
        assert word in str(refused.value), word
    client.vector_stores.delete(store.id)


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_too_large_is_refused_and_nothing_of_it_is_kept(gateway: Gateway, announced: bool) -> None:
    """200 MB, against `files.max_mb: 128`."""
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    size = 200 * 2**20
    with socket.create_connection(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])), timeout=60) as connection:
        length = f"content-length: {size + len(head)}" if announced else "transfer-encoding: chunked"
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.key}\r\n{length}\r\n"
            "content-type: multipart/form-data; boundary=b\r\n\r\n".encode()
        )
        piece = b"x" * 2**20
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"%x\r\n%b\r\n" % (len(head), head) if not announced else head)
            for _ in range(size // len(piece)):
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if not announced else piece)
        answer = connection.recv(65_536)
    assert b" 413 " in answer.split(b"\r\n", 1)[0]
    assert b"request_too_large" in answer
    with gateway.sdk() as client:
        assert "a.txt" not in [one.filename for one in client.files.list()]
    assert not [path for path in gateway.home.iterdir() if path.name.startswith("tmp")]


def test_all_files_of_a_role_together_have_a_bound(tmp_path: Path) -> None:
    config = {
        "backends": [{"name": "gone", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}],
        "models": [{"name": "gone", "route": ["gone"]}],
        "files": {"role_mb": 1},
        "roles": [{"name": "default"}, {"name": "readers"}],
    }

    def upload(client: openai.OpenAI, name: str, size: int) -> str:
        return client.files.create(file=(name, b"x" * size), purpose="assistants").id

    with (
        running(tmp_path, config) as gateway,
        gateway.sdk(gateway.new_key(role="default")) as client,
        gateway.sdk(gateway.new_key(role="default")) as colleague,
        gateway.sdk(gateway.new_key(role="readers")) as stranger,
    ):
        half = upload(client, "half.txt", 2**19)
        with pytest.raises(openai.BadRequestError, match=r"more than 1 MB \(files\.role_mb\)") as refused:
            upload(colleague, "too-much.txt", 2**19 + 1)
        assert refused.value.param == "file"
        assert [one.filename for one in colleague.files.list()] == ["half.txt"]
        upload(stranger, "all.txt", 2**20)
        client.files.delete(half)
        upload(colleague, "all.txt", 2**20)
        with pytest.raises(openai.BadRequestError, match="role_mb"):
            upload(client, "one-byte.txt", 1)


def test_a_narrowed_key_sees_its_own_uploads_and_makes_no_store_that_it_could_not_use(
    gateway: Gateway, client: openai.OpenAI
) -> None:
    with (
        store_of(client, vault__txt=b"The vault code is ZEBRA-91.") as store,
        gateway.sdk(gateway.new_key(role="default", collections=["handbook"])) as narrowed,
    ):
        file_id = client.vector_stores.files.list(store.id).data[0].id
        for ask in (
            lambda: narrowed.files.retrieve(file_id),
            lambda: narrowed.files.content(file_id),
            lambda: narrowed.files.delete(file_id),
            lambda: narrowed.vector_stores.retrieve(store.id),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        assert narrowed.files.list().data == []
        own = narrowed.files.create(file=("own.txt", b"mine"), purpose="assistants")
        assert [one.id for one in narrowed.files.list()] == [own.id]
        with pytest.raises(openai.BadRequestError, match="narrowed"):
            narrowed.vector_stores.create(name="elsewhere")
        narrowed.files.delete(own.id)


def test_no_member_outlives_its_file(gateway: Gateway, client: openai.OpenAI) -> None:
    """A file that is attached and deleted at once, by several."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            store = client.vector_stores.create()
            file_id = client.files.create(file=("a.txt", b"double words"), purpose="assistants").id
            work = [pool.submit(attached, client, store.id, file_id) for _ in range(6)]
            work.append(pool.submit(client.files.delete, file_id))
            assert {one.result() for one in work[:-1]} <= {200, 404}
            work[-1].result()
            assert client.vector_stores.files.list(store.id).data == []
            client.vector_stores.delete(store.id)


def attached(client: openai.OpenAI, store: str, file_id: str) -> int:
    """The status."""
    try:
        client.vector_stores.files.create(store, file_id=file_id)
    except openai.APIStatusError as refused:
        return refused.status_code
    return 200


def test_a_file_that_is_attached_again_and_again_is_found_once_and_can_be_deleted(client: openai.OpenAI) -> None:
    store = client.vector_stores.create()
    file_id = client.files.create(file=("a.txt", b"double words"), purpose="assistants").id
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: attached(client, store.id, file_id), range(16))) == {200}
    client.vector_stores.files.poll(file_id, vector_store_id=store.id)
    extra = {"retrieval": {"mode": "lexical"}}
    assert len(client.vector_stores.search(store.id, query="double", extra_body=extra).data) == 1
    client.files.delete(file_id)
    assert client.vector_stores.search(store.id, query="double", extra_body=extra).data == []
    client.vector_stores.delete(store.id)
