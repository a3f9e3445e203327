"""`chasqui models verify`."""

import sys
from pathlib import Path

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop


@click.command("verify")
@click.argument("name", required=False)
@config_option
def verify(name: str | None, config: Path | None) -> None:
    """Read every pulled file (or NAME) and compare it with its digest. Ends with 1 where one has changed."""
    from backends.errors import ModelFileUnusable
    from gateway.cli.models.common import shelf_of

    shelf = shelf_of(load_or_stop(config))
    try:
        paths = shelf.files() if name is None else [shelf.path(name if name.endswith(".gguf") else f"{name}.gguf")]
    except ModelFileUnusable as exc:
        stop(str(exc))
    if name is not None and not paths[0].exists():
        stop(f"there is no {paths[0].name} in {shelf.folder}; `chasqui models list` shows what there is")
    if not paths:
        click.echo(f"there are no model files in {shelf.folder}")
    bad = [path for path in paths if not _is_right(path)]
    sys.exit(1 if bad else 0)


def _is_right(path: Path) -> bool:
    from backends.errors import ModelFileUnusable
    from backends.gguf_head import check_whole, read_head
    from backends.pulling.shelf import Shelf, digest_of

    try:
        read_head(path)
        check_whole(path)
        digest = digest_of(path)
    except (ModelFileUnusable, OSError) as exc:
        click.echo(f"{path.name}: BROKEN, {exc}")
        return False
    origin = Shelf(path.parent).origin(path.name)
    if origin is None:
        click.echo(f"{path.name}: sha256={digest}, with nothing to compare it to: it was not pulled")
    elif origin.sha256 == digest:
        click.echo(f"{path.name}: as it came from {origin.source}")
    else:
        click.echo(f"{path.name}: CHANGED since it came from {origin.source}; remove it and pull it again")
        return False
    return True
