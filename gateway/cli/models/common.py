"""What the commands about models share."""

from pathlib import Path

from backends.errors import ModelFileUnusable
from backends.pulling.shelf import Shelf
from backends.settings import LlamaCppSettings
from backends.sources import MODELS, find_model
from gateway.settings import Loaded


def shelf_of(loaded: Loaded) -> Shelf:
    return Shelf(loaded.home / MODELS)


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


def size_words(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
