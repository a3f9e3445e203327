"""What this machine has for models: memory, also of its cards, as far as the system tells."""

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CARD_TIMEOUT_S = 10


class Machine(NamedTuple):
    memory_bytes: int
    """In all, or what a container may have of it."""
    available_bytes: int
    """Now."""
    card_bytes: int = 0
    """Of all NVIDIA cards together."""
    computes_on_cards: bool = False
    """llama.cpp was compiled for them."""


def this_machine(
    *, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup"), nvidia_smi: str = "nvidia-smi"
) -> Machine:
    told = dict(_meminfo(proc / "meminfo"))
    memory = told.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = told.get("MemAvailable", memory)
    if (limit := _number(cgroup / "memory.max")) is not None and limit < memory:
        memory, available = limit, min(available, limit - (_number(cgroup / "memory.current") or 0))
    return Machine(memory, max(0, available), _cards(nvidia_smi), _compiled_for_cards())


def _meminfo(path: Path) -> Iterator[tuple[str, int]]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.split()[1:] == ["kB"]:
            yield name, int(rest.split()[0]) * 1024


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # `max`: no limit
        return None


def _cards(nvidia_smi: str) -> int:
    command = [nvidia_smi, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CARD_TIMEOUT_S, check=True)
        return sum(int(line) << 20 for line in done.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _compiled_for_cards() -> bool:
    """By the libraries that lie beside llama_cpp; it is not imported, which only workers may."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return False
    folder = Path(next(iter(spec.submodule_search_locations)))
    return any(folder.rglob("libggml-cuda*"))
