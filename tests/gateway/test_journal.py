"""The journal: two lines per request, whole or not there at all, and an honest no when it cannot be written."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.journal import Begin, End, Journal, encode, read
from tests.conftest import ROOT


def begin(number: int = 1, at: int = 1500) -> Begin:
    return Begin(f"req_{number}", "key_1", "team", "guide", "guide", "chat", "chat", 20, 100, 7, "ann", ("t1",), at)


def end(number: int = 1, at: int = 2500, **changes: Any) -> End:
    fields: dict[str, Any] = {
        "id": f"req_{number}", "at": at, "key": "key_1", "role": "team", "model": "guide", "entry": "guide",
        "backend": "chat", "operation": "chat", "stream": 0, "attempts": 1, "admitted": 1, "prompt_tokens": 10,
        "completion_tokens": 5, "cached_tokens": 2, "cost": 30, "compute_ms": 40, "queue_ms": 0, "first_byte_ms": 12,
        "total_ms": 12, "status": 200, "outcome": "complete", "error": "", "cache": "", "user": "ann", "tags": ("t1", "t2"),
    }  # fmt: skip
    return End(**fields | changes)


def only_file(folder: Path) -> Path:
    (file,) = folder.glob("*.log")
    return file


def test_what_is_written_is_read_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.open()
    journal.begin(begin())
    journal.end(end())
    journal.close()
    assert [entry.id for entry in read(only_file(tmp_path / "journal"))] == ["req_1", "req_1"]


def test_a_line_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    journal.begin(begin())
    (entry,) = read(only_file(tmp_path))
    assert encode(entry) == encode(begin())
    journal.close()


@pytest.mark.parametrize("cut", range(2, 40, 7))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "x.log"
    file.write_bytes(encode(begin()) + encode(end())[:-cut])
    assert [encode(entry) for entry in read(file)] == [encode(begin())]


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


def test_a_full_file_is_followed_by_another_and_both_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.journal.ROTATE_BYTES", 300)
    journal = Journal(tmp_path)
    for number in range(4):
        journal.begin(begin(number))
    assert len(journal.files) == 2
    assert sorted(tmp_path.glob("*.log")) == sorted(journal.files)
    assert journal.growing == journal.files[-1]
    journal.close()
    assert journal.growing is None


def test_a_file_that_somebody_else_has_locked_is_left_to_them(tmp_path: Path) -> None:
    """Whoever takes over the files of dead processes may be quicker than the process that has just made one."""
    script = """
import fcntl, os, sys
from pathlib import Path
from gateway.journal import Journal
real, locked = fcntl.flock, []
def slow(file, how):
    if not locked:
        locked.append(os.open(next(Path(sys.argv[1]).glob("*.log")), os.O_RDWR))
        real(locked[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    real(file, how)
fcntl.flock = slow
journal = Journal(Path(sys.argv[1]))
journal.open()
print(len(list(Path(sys.argv[1]).glob("*.log"))), len(journal.files))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["2", "1"]


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
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
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
