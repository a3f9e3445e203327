"""The journal: two lines per request, whole or not there at all, and an honest no when it cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.journal import KEEP_FILES, Begin, End, Journal, encode, read
from tests.conftest import ROOT


def begin(number: int = 1) -> Begin:
    return Begin(f"req_{number}", "key_1", "guide", 100, 1.5)


def end(number: int = 1) -> End:
    return End(f"req_{number}", "key_1", "guide", "chat", 1, 10, 5, 200, "complete", 12, 2.5)


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.log")
    return file


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.open()
    journal.begin(begin())
    journal.end(end())
    journal.close()
    assert list(read(only_file(tmp_path / "journal"))) == [begin(), end()]


def test_a_line_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    journal.begin(begin())
    assert list(read(only_file(tmp_path))) == [begin()]
    journal.close()


@pytest.mark.parametrize("cut", range(2, 40, 7))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "x.log"
    file.write_bytes(encode(begin()) + encode(end())[:-cut])
    assert list(read(file)) == [begin()]


def test_a_damaged_line_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    damaged = encode(begin(2)).replace(b"guide", b"guido")
    file.write_bytes(encode(begin(1)) + damaged + b"\n nonsense \xff\n" + encode(begin(3)))
    assert [entry.id for entry in read(file)] == ["req_1", "req_3"]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600
    journal.close()


def test_old_files_go_and_those_of_living_processes_stay(tmp_path: Path) -> None:
    living = Journal(tmp_path, clock=lambda: 0.0)
    living.open()
    for second in range(1, KEEP_FILES + 5):
        journal = Journal(tmp_path, clock=lambda second=second: float(second))
        journal.open()
        journal.close()
    names = sorted(file.name for file in tmp_path.glob("*.log"))
    assert len(names) == KEEP_FILES + 1
    assert names[0].startswith("19700101T000000")
    living.close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="cannot be written"):
        Journal(tmp_path / "journal").open()


def test_a_full_disk_is_told_before_work_starts_and_nothing_torn_is_read(tmp_path: Path) -> None:
    """A limit on file size stands in for the disk: the write comes back short, then fails."""
    script = """
import resource, signal, sys
from pathlib import Path
from gateway.errors import StoreUnavailable
from tests.gateway.test_journal import Journal, begin
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
journal = Journal(Path(sys.argv[1]))
journal.open()
for number in range(10):
    try:
        journal.begin(begin(number))
        print("written", number)
    except StoreUnavailable as exc:
        print("refused", exc)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.close()
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=True
    )
    written = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("written")]
    assert "free some disk space" in result.stdout
    assert len(written) == 9
    entries = [entry.id for file in sorted(tmp_path.glob("*.log")) for entry in read(file)]
    assert sorted(entries) == sorted(f"req_{number}" for number in written)
