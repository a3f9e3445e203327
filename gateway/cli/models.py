"""`chasqui models`: what a configuration offers, and the models in the box."""

from pathlib import Path

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop
from gateway.settings import Loaded


@click.group("models")
def command() -> None:
    """List models; prepare the ones in the box."""


@command.command("list")
@config_option
def list_models(config: Path | None) -> None:
    """The names that clients may ask for, and where each of them leads."""
    from rich.console import Console
    from rich.table import Table

    from policies.routing import expand

    settings = load_or_stop(config).settings
    by_name = {model.name: model for model in settings.models}
    table = Table("model", "stations", "prompt", "collections")
    for model in settings.models:
        stations = expand(model.name, by_name, [backend.name for backend in settings.backends])
        table.add_row(
            model.name,
            ", ".join(station.backend for station in stations),
            model.prompt or "",
            ", ".join(model.collections),
        )
    Console().print(table)


@command.command("prepare")
@click.option("--quiet", is_flag=True, help="Say nothing when everything is there.")
@config_option
def prepare(quiet: bool, config: Path | None) -> None:
    """Put missing models of the box (MiniLM, a synthetic guide) into place."""
    loaded = load_or_stop(config)
    if not prepare_missing(loaded) and not quiet:
        click.echo("all model files are there")


def prepare_missing(loaded: Loaded) -> int:
    """How many were made; one that cannot be made ends the program with words."""
    from backends.boxed import prepare
    from backends.errors import ModelFileUnusable
    from backends.settings import LlamaCppSettings
    from backends.sources import find_model

    made = 0
    for backend in loaded.settings.backends:
        if not isinstance(backend, LlamaCppSettings):
            continue
        try:
            find_model(backend.model, home=loaded.home, config_dir=loaded.path.parent)
        except ModelFileUnusable:
            try:
                prepare(
                    backend.model,
                    home=loaded.home,
                    config_dir=loaded.path.parent,
                    say=lambda words: click.echo(words, err=True),
                )
            except (ModelFileUnusable, OSError) as exc:
                stop(f"backend '{backend.name}': {exc}")
            made += 1
    return made
