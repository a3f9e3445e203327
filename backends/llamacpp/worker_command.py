"""The command line of a worker, written here and read in `worker.py`. Imports no engine: the gateway uses it too."""

import sys
from pathlib import Path
from typing import NamedTuple

from backends.settings import LlamaCppSettings

KEY_ENV = "CHASQUI_WORKER_KEY"
"""Environment variable with the bearer; not an argument, because `ps` shows arguments to everybody."""


class WorkerOptions(NamedTuple):
    model: Path
    name: str
    serves: str
    context_tokens: int
    slots: int
    threads: int
    gpu_layers: int
    split_mode: str
    flash_attention: str
    cache_type_k: str
    cache_type_v: str
    batch_tokens: int
    socket: Path

    @classmethod
    def of(cls, settings: LlamaCppSettings, path: Path, socket: Path) -> "WorkerOptions":
        threads = 0 if settings.threads == "auto" else settings.threads
        flash = (
            settings.flash_attention
            if settings.flash_attention == "auto"
            else "on"
            if settings.flash_attention
            else "off"
        )
        return cls(
            path,
            settings.name,
            settings.serves,
            settings.context_tokens,
            settings.slots,
            threads,
            settings.gpu_layers,
            settings.split_mode,
            flash,
            settings.cache_type_k,
            settings.cache_type_v,
            settings.batch_tokens,
            socket,
        )


def worker_command(options: WorkerOptions) -> list[str]:
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options._asdict().items()]
    return [sys.executable, "-m", "backends.llamacpp.worker", *arguments, "--with-parent"]


def default_threads(cores: int) -> int:
    """One core stays free: threads that wait for each other at every step stand still when one of them does."""
    return max(1, cores - 1)
