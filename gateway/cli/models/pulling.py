"""`chasqui models pull`."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop

if TYPE_CHECKING:
    from backends.pulling.part import Progress

SAID_EACH = 0.1
"""Of a download, where no bar can be drawn."""


@click.command("pull")
@click.argument("source")
@click.option("--name", help="Of the file here [default: as it is called there].")
@click.option(
    "--replace", is_flag=True, help="Take the place of a file of that name; fetch again what may have changed."
)
@config_option
def pull(source: str, name: str | None, replace: bool, config: Path | None) -> None:
    """Fetch a model file into `home/models`: whole and verified, or not at all. What was interrupted goes on.

    SOURCE: hf://owner/repo/file.gguf[@revision], https://host/file.gguf[#sha256=…], or file:/path/file.gguf. HF_TOKEN and
    HF_ENDPOINT are honoured.
    """
    from backends.errors import ModelFileUnusable
    from backends.pulling.pull import Pull
    from backends.pulling.room import size_words
    from gateway.cli.models.common import shelf_of

    loaded = load_or_stop(config)
    if name is not None and not name.endswith(".gguf"):
        name = f"{name}.gguf"
    with progress_bars() as progress:
        work = Pull(shelf_of(loaded), progress=progress, say=lambda words: click.echo(words, err=True))
        try:
            path = asyncio.run(work.run(source, name=name, replace=replace))
        except ModelFileUnusable as exc:
            stop(str(exc))
        except KeyboardInterrupt:
            stop("interrupted; what has arrived is kept: pull again to go on", code=130)
    click.echo(
        f"{path} is here ({size_words(path.stat().st_size)}). Offer it to clients: chasqui models add {path.name}"
    )


@contextmanager
def progress_bars() -> Iterator[Callable[[str], "Progress"]]:
    """One for each file; lines where the output is no terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines
        return
    shown = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(progress.TextColumn("{task.description}"), *shown, console=console) as bars:

        def bar(name: str) -> "Progress":
            task = bars.add_task(name, total=None)

            def told(here: int, total: int | None) -> None:
                bars.update(task, completed=here, total=total)

            return told

        yield bar


def _lines(name: str) -> "Progress":
    said = -1.0

    def told(here: int, total: int | None) -> None:
        nonlocal said
        if total and (here / total >= said + SAID_EACH or here == total > said * total):
            said = here / total
            click.echo(f"{name}: {said:.0%} of {total / 1e6:.1f} MB", err=True)

    return told
