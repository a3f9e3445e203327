import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import retrieval.parsers as parsers_module
from retrieval.errors import DocumentUnreadable
from retrieval.parsers import Parsers
from retrieval.settings import ChunkSettings, FilesSettings
from tests.retrieval import samples

pytestmark = pytest.mark.anyio

NEVER_ENDS = "slow.xlsx", samples.zip_bomb_xlsx(180 << 20)
"""Takes more than two seconds of work, and stays below what a document may unpack to."""


def processes() -> set[int]:
    """Of ours, that read documents and are not dead."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            if (
                int(parent) == os.getpid()
                and state != "Z"
                and b"retrieval.parser_child" in (entry / "cmdline").read_bytes()
            ):
                found.add(int(entry.name))
        except (OSError, ValueError):
            continue  # it went meanwhile
    return found


def in_the_middle(pid: int) -> bool:
    """It has unpacked a good part of a large document."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident > 200 << 20


async def until(condition: Callable[[], Any]) -> None:
    """What another process does raises no event here."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


Processes = Callable[[], set[int]]


@pytest.fixture(autouse=True)
async def ours() -> AsyncIterator[Processes]:
    """Those that the test has started: a gateway of other tests may have one of its own. None of them is left at the end."""
    before = processes()

    def started() -> set[int]:
        return processes() - before

    yield started
    await until(lambda: not started())


@pytest.fixture
async def open_parsers() -> AsyncIterator[Callable[..., Parsers]]:
    """Closed at the end of a test that fails, too: a loop does not close while one of its processes lives."""
    async with AsyncExitStack() as stack:

        def opened(**limits: float) -> Parsers:
            parsers = Parsers(FilesSettings.model_validate(limits))
            stack.push_async_callback(parsers.aclose)
            return parsers

        yield opened


@pytest.fixture
def parsers(open_parsers: Callable[..., Parsers]) -> Parsers:
    return open_parsers()


def words_of(text: str) -> dict[str, int]:
    return dict.fromkeys(text.split(), 1)


async def test_a_document_is_read_counted_and_cut(parsers: Parsers) -> None:
    text = "# Care\n\n" + "Lamas eat hay. " * 40
    async with parsers.reading("care.md", text.encode()) as reading:
        assert reading.title == "Care"
        assert sorted(reading.words) == sorted({*text.split()})
        assert reading.size_bytes == len(text.encode())
        settings = ChunkSettings(max_tokens=32, overlap_tokens=0)
        cuts = await reading.chunks(dict.fromkeys(reading.words, 1), settings, window_tokens=256)
    assert len(cuts) > 3
    assert all(cut.tokens <= 32 for cut in cuts)
    assert {cut.heading for cut in cuts} == {"Care"}
    assert sum(cut.text.count("hay.") for cut in cuts) == 40


async def test_a_document_is_cut_as_often_as_somebody_asks(parsers: Parsers) -> None:
    async with parsers.reading("a.txt", b"one two three " * 50) as reading:
        counts = dict.fromkeys(reading.words, 1)
        small = await reading.chunks(counts, ChunkSettings(max_tokens=16, overlap_tokens=0), window_tokens=256)
        large = await reading.chunks(counts, ChunkSettings(max_tokens=160, overlap_tokens=0), window_tokens=256)
    assert len(small) > len(large) == 1


async def test_text_comes_by_itself(parsers: Parsers) -> None:
    assert await parsers.text("a.txt", "Lamas, años, 日本".encode()) == "Lamas, años, 日本"
    assert "| Inti | 148 |" in await parsers.text("a.xlsx", samples.xlsx())
    assert await parsers.text("a.pdf", samples.pdf(["one", "two"])) == "one\n\ntwo"


async def test_one_process_reads_one_document_after_the_other(ours: Processes, parsers: Parsers) -> None:
    await parsers.text("a.txt", b"one")
    first = ours()
    for number in range(5):
        assert await parsers.text("a.txt", b"text %d" % number) == f"text {number}"
    assert ours() == first
    assert len(first) == 1


async def test_what_cannot_be_read_says_why_and_costs_no_process(ours: Processes, parsers: Parsers) -> None:
    await parsers.text("a.txt", b"one")
    first = ours()
    with pytest.raises(DocumentUnreadable, match=r"e\.pdf .*protected by a password") as caught:
        await parsers.text("e.pdf", samples.encrypted_pdf())
    assert not caught.value.kind
    with pytest.raises(DocumentUnreadable, match=r"a\.exe") as caught:
        async with parsers.reading("a.exe", b"MZ"):
            pass
    assert caught.value.kind
    assert await parsers.text("a.txt", b"one") == "one"
    assert ours() == first


async def test_a_file_that_is_too_large_is_not_read(open_parsers: Callable[..., Parsers]) -> None:
    parsers = open_parsers(max_mb=0.001)
    with pytest.raises(DocumentUnreadable, match=r"files\.max_mb"):
        await parsers.text("a.txt", b"x" * 2000)
    assert await parsers.text("a.txt", b"x" * 1000) == "x" * 1000
    await parsers.aclose()


async def test_a_document_that_takes_all_memory_costs_itself_alone(open_parsers: Callable[..., Parsers]) -> None:
    parsers = open_parsers(parse_memory_mb=512)
    for _ in range(2):
        with pytest.raises(DocumentUnreadable, match=r"bomb\.xlsx .*files\.parse_memory_mb"):
            await parsers.text("bomb.xlsx", NEVER_ENDS[1])
        assert await parsers.text("a.txt", b"next") == "next"
    await parsers.aclose()


async def test_a_document_that_takes_too_long_costs_itself_alone(open_parsers: Callable[..., Parsers]) -> None:
    parsers = open_parsers(parse_s=0.1, parse_memory_mb=8192)
    with pytest.raises(DocumentUnreadable, match=r"slow\.xlsx takes too long .*files\.parse_s"):
        await parsers.text(*NEVER_ENDS)
    assert await parsers.text("a.txt", b"next") == "next"
    await parsers.aclose()


async def test_seconds_are_counted_for_each_document_and_not_for_the_process(
    ours: Processes,
    open_parsers: Callable[..., Parsers],
) -> None:
    parsers = open_parsers(parse_s=0.1)
    text = b"word " * 400_000
    for _ in range(12):
        async with parsers.reading("a.txt", text) as reading:
            assert reading.words == ["word", "a"]
    assert len(ours()) == 1
    await parsers.aclose()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
async def test_a_process_that_is_killed_costs_its_document_alone(
    ours: Processes, parsers: Parsers, how: signal.Signals
) -> None:
    before = ours()
    reading = asyncio.create_task(parsers.text(*NEVER_ENDS))
    await until(lambda: ours() - before)
    pid = (ours() - before).pop()
    await until(lambda: in_the_middle(pid))
    os.kill(pid, how)
    with pytest.raises(DocumentUnreadable, match=r"^slow\.xlsx "):
        await reading
    assert await parsers.text("a.txt", b"next") == "next"


async def test_a_process_that_dies_between_reading_and_cutting_costs_its_document_alone(
    ours: Processes, parsers: Parsers
) -> None:
    await parsers.text("a.txt", b"one")
    with pytest.raises(DocumentUnreadable, match=r"^a\.txt "):
        async with parsers.reading("a.txt", b"one two") as reading:
            pid = ours().pop()
            os.kill(pid, signal.SIGSEGV)
            await reading.chunks(words_of("one two a"), ChunkSettings(), window_tokens=256)
    assert await parsers.text("a.txt", b"next") == "next"


async def test_a_reader_who_leaves_in_the_middle_does_not_poison_the_next_document(
    ours: Processes, parsers: Parsers
) -> None:
    for started, busy in ((False, False), (True, False), (True, True)):
        before = ours()
        reading = asyncio.create_task(parsers.text(*NEVER_ENDS))
        await (until(lambda before=before: ours() - before) if started else asyncio.sleep(0))
        if busy:
            pid = (ours() - before).pop()
            await until(lambda pid=pid: in_the_middle(pid))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await parsers.text("a.txt", b"next") == "next"
        await parsers.aclose()


async def test_a_reader_who_leaves_while_waiting_for_a_turn_takes_none(parsers: Parsers) -> None:
    async with parsers.reading("a.txt", b"one"):
        waiting = [asyncio.create_task(parsers.text("b.txt", b"two")) for _ in range(3)]
        await asyncio.sleep(0)
        for one in waiting[:2]:
            one.cancel()
        await asyncio.sleep(0)
    assert await waiting[2] == "two"
    assert await parsers.text("a.txt", b"next") == "next"


async def test_an_exception_of_the_reader_does_not_poison_the_next_document(parsers: Parsers) -> None:
    with pytest.raises(LookupError):
        async with parsers.reading("a.txt", b"one two"):
            raise LookupError
    async with parsers.reading("b.txt", b"three") as reading:
        assert reading.words == ["three", "b"]


async def test_no_more_processes_than_are_allowed(ours: Processes, open_parsers: Callable[..., Parsers]) -> None:
    parsers = open_parsers(parsers=2)
    most = 0

    async def read(number: int) -> str:
        nonlocal most
        async with parsers.reading(f"{number}.txt", b"word%d" % number) as reading:
            most = max(most, len(ours()))
            return reading.words[0]

    assert await asyncio.gather(*map(read, range(12))) == [f"word{number}" for number in range(12)]
    assert most == 2
    await parsers.aclose()


async def test_documents_that_are_read_at_once_are_not_mixed_up(open_parsers: Callable[..., Parsers]) -> None:
    parsers = open_parsers(parsers=3)
    async with AsyncExitStack() as stack:
        readings = [
            await stack.enter_async_context(parsers.reading(f"{name}.txt", f"{name} ".encode() * 30)) for name in "abc"
        ]
        for name, reading in zip("abc", readings, strict=True):
            cuts = await reading.chunks({name: 1}, ChunkSettings(), window_tokens=256)
            assert {word for cut in cuts for word in cut.text.split()} == {name}
    await parsers.aclose()


async def test_a_process_is_replaced_when_it_has_read_many(
    ours: Processes, monkeypatch: pytest.MonkeyPatch, open_parsers: Callable[..., Parsers]
) -> None:
    monkeypatch.setattr(parsers_module, "DOCUMENTS_EACH", 2)
    parsers = open_parsers()
    seen = set()
    for _ in range(5):
        async with parsers.reading("a.txt", b"one"):
            seen |= ours()
    assert len(seen) == 3
    await parsers.aclose()


async def test_closed_readers_leave_no_process(ours: Processes, parsers: Parsers) -> None:
    await parsers.text("a.txt", b"one")
    assert ours()
    await parsers.aclose()
    assert not ours()
    await parsers.aclose()
    assert await parsers.text("a.txt", b"one") == "one", "who asks again gets another"


async def test_large_documents_go_through_the_pipe(parsers: Parsers) -> None:
    text = "".join(f"{number} " for number in range(1_000_000))
    assert await parsers.text("a.txt", text.encode()) == text
