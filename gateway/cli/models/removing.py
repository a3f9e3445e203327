"""`chasqui models remove`."""

from pathlib import Path

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop


@click.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Though a backend of the configuration uses it.")
@config_option
def remove(name: str, force: bool, config: Path | None) -> None:
    """Delete the model file NAME from `home/models`, and what was begun of it."""
    from backends.errors import ModelFileUnusable
    from backends.pulling.room import size_words
    from backends.pulling.shelf import files_of_model
    from gateway.cli.models.common import shelf_of, users_of

    loaded = load_or_stop(config)
    shelf = shelf_of(loaded)
    try:
        path = shelf.path(name if name.endswith(".gguf") else f"{name}.gguf")
        users = [user for part in files_of_model(path) if part.exists() for user in users_of(part, loaded)]
        if users and not force:
            stop(f"{path.name} is used by {', '.join(users)} in {loaded.path}; take it out there first, or --force")
        freed = shelf.remove(path.name)
    except ModelFileUnusable as exc:
        stop(str(exc))
    except OSError as exc:
        stop(f"{name} cannot be removed: {exc.strerror}")
    click.echo(
        f"{path.name} is gone; {size_words(freed)} are free. A worker that has it open keeps it until it is stopped."
    )
