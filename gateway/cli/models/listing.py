"""`chasqui models list`."""

import json
from pathlib import Path
from typing import Any

import rich_click as click

from gateway.cli.common import config_option, load_or_stop
from gateway.settings import Loaded


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@config_option
def list_models(as_json: bool, config: Path | None) -> None:
    """The names that clients may ask for and where each of them leads; the model files, and who uses them."""
    loaded = load_or_stop(config)
    names, files = names_of(loaded), files_of(loaded)
    if as_json:
        click.echo(json.dumps({"models": names, "files": files}, indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from gateway.cli.models.common import wide_console

    table = Table("model", "stations", "prompt", "collections")
    for model in names:
        about = model["name"], ", ".join(model["stations"]), model["prompt"] or "", ", ".join(model["collections"])
        table.add_row(*map(escape, about))
    console = wide_console()
    console.print(table)
    shown = Table("file", "size", "kind", "trained with", "backends", "from")
    for file in files:
        tokens = f"{file['context_tokens']:,} tokens" if file["context_tokens"] else ""
        row = (
            file["file"],
            file["size"],
            file["kind"],
            tokens,
            ", ".join(file["backends"]),
            file["source"] or "put there",
        )
        shown.add_row(*map(escape, row))
    console.print(shown)


def names_of(loaded: Loaded) -> list[dict[str, Any]]:
    from policies.routing import expand

    settings = loaded.settings
    by_name = {model.name: model for model in settings.models}
    backends = [backend.name for backend in settings.backends]
    return [
        {
            "name": model.name,
            "stations": [station.backend for station in expand(model.name, by_name, backends)],
            "prompt": model.prompt,
            "collections": list(model.collections),
        }
        for model in settings.models
    ]


def files_of(loaded: Loaded) -> list[dict[str, Any]]:
    """On the shelf, and elsewhere where a backend uses them."""
    from gateway.cli.models.common import shelf_of, used_files

    shelf, used = shelf_of(loaded), used_files(loaded)
    paths = [*shelf.files(), *(path for _, path in used if not path.is_relative_to(shelf.folder))]
    return [described(path, loaded) for path in dict.fromkeys(paths)]


def described(path: Path, loaded: Loaded) -> dict[str, Any]:
    from backends.errors import ModelFileUnusable
    from backends.gguf_head import read_head
    from backends.pulling.room import size_words
    from gateway.cli.models.common import shelf_of, users_of

    shelf = shelf_of(loaded)
    on_shelf = path.is_relative_to(shelf.folder)
    origin = shelf.origin(path.name) if path.parent == shelf.folder else None
    size = path.stat().st_size
    told: dict[str, Any] = {
        "file": str(path.relative_to(shelf.folder) if on_shelf else path),
        "size_bytes": size,
        "size": size_words(size),
        "backends": users_of(path, loaded),
        "source": origin.source if origin is not None else None,
        "sha256": origin.sha256 if origin is not None else None,
        "kind": "unreadable",
        "context_tokens": 0,
    }
    try:
        head = read_head(path)
    except ModelFileUnusable:
        return told
    return told | {
        "kind": f"{head.serves}, {head.architecture} {head.quantization}",
        "context_tokens": head.context_tokens,
        "serves": head.serves,
        "licence": head.licence or None,
    }
