"""`chasqui models prepare`: the models in the box."""

from pathlib import Path

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop
from gateway.settings import Loaded


@click.command("prepare")
@click.option("--quiet", is_flag=True, help="Say nothing when everything is there.")
@config_option
def prepare(quiet: bool, config: Path | None) -> None:
    """Put missing models of the box (MiniLM) into place."""
    loaded = load_or_stop(config)
    if not prepare_missing(loaded) and not quiet:
        click.echo("all model files are there")


def prepare_missing(loaded: Loaded) -> int:
    """How many were made; one that cannot be made ends the program with words."""
    from backends.boxed import prepare, retire_synthetic
    from backends.errors import ModelFileUnusable
    from backends.settings import LlamaCppSettings
    from backends.sources import find_model

    def say(words: str) -> None:
        click.echo(words, err=True)

    made = 0
    retire_synthetic(home=loaded.home, config_dir=loaded.path.parent, say=say)
    for backend in loaded.settings.backends:
        if not isinstance(backend, LlamaCppSettings) or backend.auto_pull:
            continue
        try:
            find_model(backend.model, home=loaded.home, config_dir=loaded.path.parent)
        except ModelFileUnusable as missing:
            try:
                prepare(backend.model, missing, home=loaded.home, config_dir=loaded.path.parent, say=say)
            except (ModelFileUnusable, OSError) as exc:
                stop(f"backend '{backend.name}': {exc}")
            made += 1
    return made
