"""Where files are: a model, by path or by the source that it was pulled from; and what globs mean."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from backends.errors import ModelFileUnusable
from backends.pulling.shelf import Shelf
from backends.pulling.source import is_source, parse_source

MODELS = "models"
"""In `home`: what is pulled, prepared, or put there by hand."""


def find_model(model: str, *, home: Path, config_dir: Path) -> Path:
    """The file that a configuration means: looked up in `home`, then beside the configuration; of a source, what was pulled from it.

    Raises:
        ModelFileUnusable: it is not here; the message says where was looked, and what to do.
    """
    if is_source(model):
        source = parse_source(model)
        found = Shelf(home / MODELS).find(source)
        if found is None:
            raise ModelFileUnusable(
                f"{source.shown} is not here; run {source.advice}, or write `auto_pull: true` beside it"
            )
        return found
    candidates = [Path(model)] if Path(model).is_absolute() else [home / model, config_dir / model]
    for candidate in candidates:
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            if candidate.is_file():
                return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise ModelFileUnusable(
        f"the model file {model[:200]} is missing (looked for {looked[:500]}); run "
        "`chasqui models prepare`, put a GGUF there, or correct `model:`"
    )


def matching_files(patterns: Iterable[str], *, root: Path) -> list[Path]:
    """Regular files that any of the globs matches, sorted, each once. Relative globs start at `root`."""
    found: set[Path] = set()
    for pattern in patterns:
        start = Path("/") if Path(pattern).is_absolute() else root
        found |= {path for path in start.glob(pattern.lstrip("/")) if path.is_file()}
    return sorted(found)
