"""Where files are: a model (today a path; other sources join here), and what globs mean."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from backends.errors import ModelFileUnusable


def find_model(model: str, *, home: Path, config_dir: Path) -> Path:
    """The file that a configuration means: looked up in `home`, then beside the configuration.

    Raises:
        ModelFileUnusable: neither place has it; the message names both.
    """
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
