"""What the commands about models share."""

from pathlib import Path
from typing import TYPE_CHECKING

from backends.errors import ModelFileUnusable
from backends.pulling.shelf import Shelf
from backends.settings import LlamaCppSettings
from backends.sources import MODELS, find_model
from gateway.settings import Loaded

if TYPE_CHECKING:
    from rich.console import Console

NO_WIDTH = 300
"""Characters, where a table is read by a program or lands in a file."""


def shelf_of(loaded: Loaded) -> Shelf:
    return Shelf(loaded.home / MODELS)


def wide_console() -> "Console":
    """Names are to be copied: where no terminal sets the width, nothing is cut."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=NO_WIDTH)


def users_of(path: Path, loaded: Loaded) -> list[str]:
    """Names of the backends that a configuration gives this file."""
    return [name for name, used in used_files(loaded) if used.resolve() == path.resolve()]


def used_files(loaded: Loaded) -> list[tuple[str, Path]]:
    """(backend, file), of those that are here."""
    found = []
    for backend in loaded.settings.backends:
        if isinstance(backend, LlamaCppSettings):
            try:
                found.append((backend.name, find_model(backend.model, home=loaded.home, config_dir=loaded.path.parent)))
            except ModelFileUnusable:
                continue
    return found
