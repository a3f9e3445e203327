"""Pulls from a server that plays the hub, well behaved and not."""

import asyncio
import gzip
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.errors import ModelFileUnusable
from backends.pulling.download import PAUSES_S, Download
from backends.pulling.pull import Pull
from backends.pulling.shelf import Shelf
from tests.backends.pulling.hub import CONTENT, DIGEST, NOTHING, Hub, playing

pytestmark = pytest.mark.anyio

FILE = "owner/repo/m-Q4.gguf"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with playing() as hub:
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


@pytest.fixture
def elsewhere() -> Iterator[Hub]:
    """Where the hub's files lie really."""
    with playing() as elsewhere:
        yield elsewhere


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "models")


class Puller:
    """Pulls, and remembers what was said and how long it would have paused."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.said: list[str] = []
        self.pauses: list[float] = []
        self.seen: list[tuple[int, int | None]] = []

    async def __call__(self, text: str, **options: Any) -> Path:
        async def sleep(seconds: float) -> None:
            self.pauses.append(seconds)

        pull = Pull(
            self.shelf,
            progress=lambda name: lambda here, total: self.seen.append((here, total)),
            say=self.said.append,
            sleep=sleep,
            clock=lambda: 1.0,
        )
        return await pull.run(text, **options)


@pytest.fixture
def pull(shelf: Shelf) -> Puller:
    return Puller(shelf)


def names(shelf: Shelf) -> list[str]:
    """Everything in the folder but locks, hidden things included."""
    return sorted(
        str(path.relative_to(shelf.folder))
        for path in shelf.folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    )


WHOLE = [".origins/m-Q4.gguf.json", "m-Q4.gguf"]
BEGUN = [".parts/m-Q4.gguf", ".parts/m-Q4.gguf.json"]


async def test_a_file_of_the_hub_comes_whole_and_verified(hub: Hub, elsewhere: Hub, pull: Puller) -> None:
    hub.redirects = elsewhere.url
    path = await pull(f"hf://{FILE}")
    assert path.read_bytes() == CONTENT
    assert names(pull.shelf) == WHOLE
    assert hub.asked[0].path == "/owner/repo/resolve/main/m-Q4.gguf"
    origin = pull.shelf.origin("m-Q4.gguf")
    assert origin is not None
    assert (origin.source, origin.sha256, origin.size_bytes, origin.verified) == (
        f"hf://{FILE}",
        DIGEST,
        len(CONTENT),
        True,
    )
    assert pull.seen[0] == (0, len(CONTENT)) and pull.seen[-1] == (len(CONTENT), len(CONTENT))
    assert pull.said == []


async def test_a_revision_and_a_folder_are_asked_for(hub: Hub, pull: Puller) -> None:
    await pull("hf://owner/repo/q4/m-Q4.gguf@v1.2")
    assert hub.asked[0].path == "/owner/repo/resolve/v1.2/q4/m-Q4.gguf"


async def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub, elsewhere: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.token, hub.redirects = "hf_secret", elsewhere.url
    await pull(f"hf://{FILE}")
    assert {asked.authorization for asked in hub.asked} == {"Bearer hf_secret"}
    assert {asked.authorization for asked in elsewhere.asked} == {None}
    await pull(f"{elsewhere.url}/other.gguf")
    assert {asked.authorization for asked in elsewhere.asked} == {None}
    assert b"hf_secret" not in b"".join(path.read_bytes() for path in pull.shelf.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {}, "HF_TOKEN"),
        (401, {"x-error-code": "GatedRepo"}, "licence to be accepted"),
        (403, {"x-error-code": "GatedRepo"}, "licence to be accepted"),
        (404, {"x-error-code": "RepoNotFound"}, "no such repository"),
        (404, {"x-error-code": "EntryNotFound"}, "no such file"),
        (404, {"x-error-code": "RevisionNotFound"}, "no such revision"),
        (404, {}, "no such file"),
        (403, {}, "not open to everybody"),
        (418, {}, "refuses"),
    ],
)
async def test_a_refusal_says_what_to_do_and_is_not_repeated(
    hub: Hub, pull: Puller, status: int, headers: dict[str, str], words: str
) -> None:
    hub.statuses = [(status, headers)]
    with pytest.raises(ModelFileUnusable, match=rf"hf://{FILE} .*{words}.*\({status}\)"):
        await pull(f"hf://{FILE}")
    assert len(hub.asked) == 1
    assert not (pull.shelf.folder / "m-Q4.gguf").exists()


async def test_an_offline_hub_is_not_asked(hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFileUnusable, match="HF_HUB_OFFLINE"):
        await pull(f"hf://{FILE}")
    assert hub.asked == []


async def test_a_cut_download_goes_on_where_it_stopped(hub: Hub, pull: Puller) -> None:
    hub.cuts = [300_000, 200_000, 7]
    path = await pull(f"{hub.url}/m-Q4.gguf#sha256={DIGEST}")
    assert path.read_bytes() == CONTENT
    assert [asked.range for asked in hub.asked] == [None, "bytes=300000-", "bytes=500000-", "bytes=500007-"]
    assert {asked.if_range for asked in hub.asked[1:]} == {'"one"'}


async def test_a_download_goes_on_in_another_program(hub: Hub, shelf: Shelf) -> None:
    """`kill -9` in the middle; what had arrived is not asked for again."""
    hub.gate = threading.Event()
    code = (
        "import asyncio, pathlib, sys\nfrom backends.pulling.pull import Pull\nfrom backends.pulling.shelf import Shelf\n"
        "asyncio.run(Pull(Shelf(pathlib.Path(sys.argv[1]))).run(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(shelf.folder), f"{hub.url}/m-Q4.gguf"])
    part = shelf.part_path("m-Q4.gguf")
    await asyncio.to_thread(hub.halfway.wait, 30)
    async with asyncio.timeout(30):
        while not part.exists() or part.stat().st_size < len(CONTENT) // 2:
            await asyncio.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.gate.set()
    hub.gate = None
    assert names(shelf) == BEGUN
    await Puller(shelf)(f"{hub.url}/m-Q4.gguf")
    assert hub.asked[-1].range == f"bytes={len(CONTENT) // 2}-"
    assert (shelf.folder / "m-Q4.gguf").read_bytes() == CONTENT
    assert names(shelf) == WHOLE


async def begun(hub: Hub, pull: Puller, text: str) -> None:
    """Half of it, and then the server is in trouble for good."""
    hub.cuts, hub.then = [len(CONTENT) // 2], [(503, {})] * (len(PAUSES_S) + 1)
    with pytest.raises(ModelFileUnusable, match="answers 503"):
        await pull(text)
    hub.statuses = []
    hub.asked.clear()


async def test_a_file_that_has_changed_meanwhile_begins_anew(hub: Hub, pull: Puller) -> None:
    await begun(hub, pull, f"{hub.url}/m-Q4.gguf")
    assert names(pull.shelf) == BEGUN
    hub.content, hub.etag = NOTHING + CONTENT[::-1], '"two"'
    path = await pull(f"{hub.url}/m-Q4.gguf")
    assert hub.asked[0].range is not None
    assert path.read_bytes() == hub.content


async def test_without_an_etag_a_digest_decides_whether_to_go_on(hub: Hub, pull: Puller) -> None:
    hub.etag = None
    await begun(hub, pull, f"{hub.url}/m-Q4.gguf#sha256={DIGEST}")
    assert (await pull(f"{hub.url}/m-Q4.gguf#sha256={DIGEST}")).read_bytes() == CONTENT
    assert [asked.range for asked in hub.asked] == [f"bytes={len(CONTENT) // 2}-"]


async def test_without_an_etag_and_a_digest_it_begins_anew(hub: Hub, pull: Puller) -> None:
    hub.etag = None
    await begun(hub, pull, f"{hub.url}/m-Q4.gguf")
    await pull(f"{hub.url}/m-Q4.gguf")
    assert [asked.range for asked in hub.asked] == [None]


async def test_a_weak_etag_is_not_believed(hub: Hub, pull: Puller) -> None:
    hub.etag = 'W/"one"'
    await begun(hub, pull, f"{hub.url}/m-Q4.gguf")
    await pull(f"{hub.url}/m-Q4.gguf")
    assert [asked.range for asked in hub.asked] == [None]


async def test_a_beginning_of_another_file_is_thrown_away_once_the_digest_shows_it(hub: Hub, pull: Puller) -> None:
    hub.etag = None
    source = f"{hub.url}/m-Q4.gguf#sha256={DIGEST}"
    await begun(hub, pull, source)
    part = pull.shelf.part_path("m-Q4.gguf")
    part.write_bytes(b"GGUF" + bytes(part.stat().st_size - 4))
    assert (await pull(source)).read_bytes() == CONTENT
    assert [asked.range for asked in hub.asked] == [f"bytes={len(CONTENT) // 2}-", None]


async def test_parts_of_another_source_are_not_used(hub: Hub, pull: Puller) -> None:
    await begun(hub, pull, f"{hub.url}/a/m-Q4.gguf")
    await pull(f"{hub.url}/b/m-Q4.gguf")
    assert [asked.range for asked in hub.asked] == [None]


async def test_a_part_that_is_longer_than_the_file_begins_anew(hub: Hub, pull: Puller) -> None:
    await begun(hub, pull, f"{hub.url}/m-Q4.gguf")
    with pull.shelf.part_path("m-Q4.gguf").open("ab") as part:
        part.write(bytes(len(CONTENT)))
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == CONTENT


async def test_a_server_without_ranges_sends_all_of_it_again(hub: Hub, pull: Puller) -> None:
    hub.ranges, hub.cuts = False, [300_000]
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == CONTENT


async def test_a_server_that_sends_another_part_is_not_believed(hub: Hub, pull: Puller) -> None:
    hub.wrong_part, hub.cuts = True, [300_000]
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == CONTENT
    assert [asked.range for asked in hub.asked] == [None, "bytes=300000-", None]


@pytest.mark.parametrize("pinned", [True, False])
async def test_a_wrong_digest_installs_nothing(hub: Hub, elsewhere: Hub, pull: Puller, pinned: bool) -> None:
    hub.redirects = elsewhere.url
    if not pinned:
        hub.linked_etag = "0" * 64
    source = f"{elsewhere.url}/m-Q4.gguf#sha256={'0' * 64}" if pinned else f"hf://{FILE}"
    with pytest.raises(ModelFileUnusable, match=rf"sha256={DIGEST}, and sha256={'0' * 64} was expected; nothing"):
        await pull(source)
    assert names(pull.shelf) == []


async def test_a_digest_that_nobody_has_told_is_shown(hub: Hub, pull: Puller) -> None:
    await pull(f"{hub.url}/m-Q4.gguf")
    assert [words for words in pull.said if DIGEST in words]
    origin = pull.shelf.origin("m-Q4.gguf")
    assert origin is not None and not origin.verified


async def test_a_web_page_is_no_model(hub: Hub, pull: Puller) -> None:
    hub.content = b"<!DOCTYPE html><title>log in</title>"
    with pytest.raises(ModelFileUnusable, match="no GGUF file: it begins with '<!DOCTYPE"):
        await pull(f"{hub.url}/m-Q4.gguf")
    assert "m-Q4.gguf" not in names(pull.shelf)


async def test_a_compressed_answer_is_refused(hub: Hub, pull: Puller) -> None:
    hub.content, hub.headers = gzip.compress(CONTENT), {"content-encoding": "gzip"}
    with pytest.raises(ModelFileUnusable, match="compressed"):
        await pull(f"{hub.url}/m-Q4.gguf")


async def test_an_empty_file_is_asked_for_again_and_then_given_up(hub: Hub, pull: Puller) -> None:
    hub.content = b""
    with pytest.raises(ModelFileUnusable, match="empty"):
        await pull(f"{hub.url}/m-Q4.gguf")
    assert pull.pauses == list(PAUSES_S)[1:]


async def test_a_server_in_trouble_is_asked_again_after_growing_pauses(hub: Hub, pull: Puller) -> None:
    hub.statuses = [
        (503, {}),
        (500, {"retry-after": "\xb2"}),
        (429, {"retry-after": "7"}),
        (429, {"retry-after": "100000"}),
    ]
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == CONTENT
    assert pull.pauses == [PAUSES_S[1], PAUSES_S[2], 7.0, 120.0]


async def test_a_server_that_stays_in_trouble_is_given_up_and_what_is_here_is_kept(hub: Hub, pull: Puller) -> None:
    hub.cuts, hub.then = [300_000], [(503, {})] * 20
    with pytest.raises(ModelFileUnusable, match="pull again later to go on where it stopped"):
        await pull(f"{hub.url}/m-Q4.gguf")
    assert names(pull.shelf) == BEGUN


async def test_going_on_is_promised_only_where_something_proves_that_it_can(hub: Hub, pull: Puller) -> None:
    hub.cuts, hub.then, hub.etag = [300_000], [(503, {})] * 20, None
    with pytest.raises(ModelFileUnusable, match="pull again later$"):
        await pull(f"{hub.url}/m-Q4.gguf")


async def test_nobody_there_is_said(pull: Puller) -> None:
    with pytest.raises(ModelFileUnusable, match=r"http://127\.0\.0\.1:9/m\.gguf cannot be downloaded"):
        await pull("http://127.0.0.1:9/m.gguf")
    assert pull.pauses == [PAUSES_S[1]], "nobody waits half a minute for a network that is not there"
    assert "trying again in 1 s" in pull.said[0]


async def test_a_part_that_is_whole_is_not_asked_for_again(hub: Hub, pull: Puller) -> None:
    """Killed between the last byte and the name."""
    await begun(hub, pull, f"{hub.url}/m-Q4.gguf")
    pull.shelf.part_path("m-Q4.gguf").write_bytes(CONTENT)
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == CONTENT
    assert [asked.range for asked in hub.asked] == [f"bytes={len(CONTENT)}-"]


async def test_a_circle_of_redirects_ends(hub: Hub, pull: Puller) -> None:
    hub.statuses = [(302, {"location": "/m-Q4.gguf"})] * 20
    with pytest.raises(ModelFileUnusable, match="redirects"):
        await pull(f"{hub.url}/m-Q4.gguf")


async def test_a_chunked_answer_without_a_length_is_taken(hub: Hub, pull: Puller) -> None:
    hub.length = False  # it ends with the connection
    assert (await pull(f"{hub.url}/m-Q4.gguf#sha256={DIGEST}")).read_bytes() == CONTENT
    assert pull.seen[-1] == (len(CONTENT), None)


async def test_a_disk_without_room_is_said_before_anything_is_written(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Download.__init__
    monkeypatch.setattr(Download, "__init__", lambda *args, **named: real(*args, **named, free=lambda folder: 65 << 20))
    hub.content = CONTENT * 3
    with pytest.raises(ModelFileUnusable, match=r"needs 3\.1 MB more, .* has 68\.2 MB free"):
        await pull(f"{hub.url}/m-Q4.gguf")
    assert pull.seen == []


async def test_two_at_once_fetch_it_once(hub: Hub, shelf: Shelf) -> None:
    first, second = Puller(shelf), Puller(shelf)
    hub.gate = threading.Event()
    one = asyncio.ensure_future(first(f"{hub.url}/m-Q4.gguf"))
    await asyncio.to_thread(hub.halfway.wait, 30)
    two = asyncio.ensure_future(second(f"{hub.url}/m-Q4.gguf"))
    async with asyncio.timeout(30):
        while not second.said:
            await asyncio.sleep(0.01)
    assert "by another program" in second.said[0]
    hub.gate.set()
    assert await one == await two
    assert len(hub.asked) == 1


async def test_what_is_there_is_not_fetched_again_and_nothing_is_overwritten(hub: Hub, pull: Puller) -> None:
    await pull(f"{hub.url}/a/m-Q4.gguf")
    await pull(f"{hub.url}/a/m-Q4.gguf")
    assert len(hub.asked) == 1
    with pytest.raises(ModelFileUnusable, match="came from .*--name"):
        await pull(f"{hub.url}/b/m-Q4.gguf")
    hub.content = CONTENT + b"more"
    await pull(f"{hub.url}/b/m-Q4.gguf", replace=True)
    assert (pull.shelf.folder / "m-Q4.gguf").read_bytes() == hub.content
    hub.content = CONTENT + b"once more"
    await pull(f"{hub.url}/b/m-Q4.gguf", replace=True)
    assert (pull.shelf.folder / "m-Q4.gguf").read_bytes() == hub.content, "it has changed there"
    beside = await pull(f"{hub.url}/a/m-Q4.gguf", beside=True)
    assert beside.name.startswith("m-Q4-") and len(pull.shelf.files()) == 2
    renamed = await pull(f"{hub.url}/a/m-Q4.gguf", name="other.gguf")
    assert renamed.name == "other.gguf"
    (pull.shelf.folder / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileUnusable, match="by hand"):
        await pull(f"{hub.url}/mine.gguf")


@pytest.mark.parametrize("name", ["../m.gguf", "a/m.gguf", ".m.gguf", "m.bin", "", "m.gguf\n"])
async def test_a_name_that_leads_elsewhere_is_refused(hub: Hub, pull: Puller, name: str) -> None:
    with pytest.raises(ModelFileUnusable, match="no name for a model file"):
        await pull(f"{hub.url}/m-Q4.gguf", name=name or " ")
    assert hub.asked == []


async def test_a_split_model_comes_with_all_its_files_the_first_one_last(hub: Hub, pull: Puller) -> None:
    path = await pull("hf://owner/repo/m-00001-of-00003.gguf")
    assert path.name == "m-00001-of-00003.gguf"
    assert [asked.path.rpartition("/")[2] for asked in hub.asked] == [
        f"m-0000{number}-of-00003.gguf" for number in (2, 3, 1)
    ]
    assert [file.name for file in pull.shelf.files()] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    with pytest.raises(ModelFileUnusable, match="leave --name out"):
        await pull("hf://owner/repo/m-00001-of-00003.gguf", name="mine.gguf")


async def test_a_file_of_this_machine_is_copied(tmp_path: Path, pull: Puller) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    path = await pull(f"file:{mine}#sha256={DIGEST}", name="copy.gguf")
    assert path.read_bytes() == mine.read_bytes()
    with pytest.raises(ModelFileUnusable, match="was expected"):
        await pull(f"file:{mine}#sha256={'0' * 64}")
    mine.write_bytes(b"PK")
    with pytest.raises(ModelFileUnusable, match="no GGUF file"):
        await pull(f"file:{mine}")
    with pytest.raises(ModelFileUnusable, match="there is no file"):
        await pull(f"file:{tmp_path}/gone.gguf")
    assert [file.name for file in pull.shelf.files()] == ["copy.gguf"]


async def test_a_folder_that_cannot_be_written_is_said(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ModelFileUnusable, match="cannot be used"):
        await Puller(Shelf(tmp_path / "models"))(f"{hub.url}/m-Q4.gguf")


async def test_a_full_disk_keeps_what_has_arrived(hub: Hub, shelf: Shelf, pull: Puller) -> None:
    """The real thing: a limit on the size of files."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(ModelFileUnusable, match="cannot be written"):
            await pull(f"{hub.url}/m-Q4.gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == CONTENT


async def test_who_leaves_keeps_what_has_arrived(hub: Hub, shelf: Shelf, pull: Puller) -> None:
    hub.gate = threading.Event()
    task = asyncio.ensure_future(pull(f"{hub.url}/m-Q4.gguf"))
    await asyncio.to_thread(hub.halfway.wait, 30)
    async with asyncio.timeout(30):
        while not pull.seen or pull.seen[-1][0] < len(CONTENT) // 2:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hub.gate.set()
    hub.gate = None
    await pull(f"{hub.url}/m-Q4.gguf")
    assert hub.asked[-1].range == f"bytes={len(CONTENT) // 2}-"


def test_a_source_is_found_by_what_was_pulled_from_it(hub: Hub, shelf: Shelf) -> None:
    from backends.pulling.source import parse_source

    source = parse_source(f"{hub.url}/m-Q4.gguf")
    assert shelf.find(source) is None
    path = asyncio.run(Puller(shelf)(f"{hub.url}/m-Q4.gguf", name="renamed.gguf"))
    assert shelf.find(source) == path
    assert shelf.find(source._replace(sha256="0" * 64)) is None
    record = json.loads((shelf.folder / ".origins" / "renamed.gguf.json").read_text())
    assert record["key"] == source.key
    path.write_bytes(b"GGUF")
    assert shelf.find(source) is None, "somebody has put another file there"
    assert shelf.remove("renamed.gguf") == 4
    assert names(shelf) == []
    with pytest.raises(ModelFileUnusable, match="there is no renamed"):
        shelf.remove("renamed.gguf")


async def test_the_digest_of_a_split_model_is_of_the_file_that_the_source_names(hub: Hub, pull: Puller) -> None:
    for name in ("a-00001-of-00001.gguf", "b-00001-of-00002.gguf", "c-00002-of-00002.gguf"):
        with pytest.raises(ModelFileUnusable, match="was expected"):
            await pull(f"{hub.url}/{name}#sha256={'0' * 64}")
    path = await pull(f"{hub.url}/m-00001-of-00002.gguf#sha256={DIGEST}")
    assert path.read_bytes() == CONTENT


async def test_a_beginning_that_nothing_tells_from_a_whole_file_is_seen_by_its_tensors(
    hub: Hub, pull: Puller, synthetic_gguf: Path
) -> None:
    """No length, no digest: the connection just ends."""
    whole = synthetic_gguf.read_bytes()
    hub.content, hub.length = whole[: len(whole) // 2], False
    with pytest.raises(ModelFileUnusable, match="has been cut: it has .* bytes, and its tensors need") as refused:
        await pull(f"{hub.url}/m-Q4.gguf")
    assert str(pull.shelf.folder) not in str(refused.value)
    assert names(pull.shelf) == []
    hub.content = b"GG"
    with pytest.raises(ModelFileUnusable, match="no GGUF file, or a damaged one"):
        await pull(f"{hub.url}/m-Q4.gguf")
    hub.content = whole
    assert (await pull(f"{hub.url}/m-Q4.gguf")).read_bytes() == whole


async def test_nothing_is_removed_that_is_being_fetched(hub: Hub, shelf: Shelf, pull: Puller) -> None:
    hub.gate = threading.Event()
    task = asyncio.ensure_future(pull(f"{hub.url}/m-Q4.gguf"))
    await asyncio.to_thread(hub.halfway.wait, 30)
    with pytest.raises(ModelFileUnusable, match="is being fetched"):
        shelf.remove("m-Q4.gguf")
    hub.gate.set()
    assert (await task).read_bytes() == CONTENT
    assert shelf.remove("m-Q4.gguf") == len(CONTENT)


async def test_a_split_model_goes_with_all_its_files(hub: Hub, shelf: Shelf, pull: Puller) -> None:
    await pull(f"{hub.url}/m-00001-of-00003.gguf")
    assert shelf.remove("m-00001-of-00003.gguf") == 3 * len(CONTENT)
    assert names(shelf) == []


async def test_what_cannot_become_better_is_said_at_once(
    hub: Hub, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("file:///etc/passwd", "ftp://127.0.0.1/m.gguf", "http://127.0.0.1:port/"):
        hub.statuses = [(302, {"location": place})]
        with pytest.raises(ModelFileUnusable, match="none of the web"):
            await pull(f"{hub.url}/m-Q4.gguf")
    monkeypatch.setenv("HF_TOKEN", "t\u00f6ken")
    with pytest.raises(ModelFileUnusable, match="HF_TOKEN has characters"):
        await pull(f"hf://{FILE}")
    monkeypatch.setenv("HTTP_PROXY", "junk://user:secret@host")
    with pytest.raises(ModelFileUnusable, match="names a proxy that cannot be used") as refused:
        await pull(f"{hub.url}/m-Q4.gguf")
    assert "secret" not in str(refused.value)
    assert pull.pauses == []
    assert names(pull.shelf) == [], "nothing has begun"


async def test_a_copy_without_room_leaves_nothing(
    tmp_path: Path, pull: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.pulling import shelf

    mine = tmp_path / "mine.gguf"
    mine.write_bytes(CONTENT)
    with monkeypatch.context() as patched:
        patched.setattr(shelf, "disk_free", lambda folder: 64 << 20)
        with pytest.raises(ModelFileUnusable, match=r"needs 1\.0 MB more"):
            await pull(f"file:{mine}")
    assert names(pull.shelf) == []
