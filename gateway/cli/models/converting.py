"""`chasqui models convert`."""

from pathlib import Path

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop


@click.command("convert")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f32", "f16", "q8_0"]),
    default="q8_0",
    show_default=True,
    help="Of the matrices.",
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: home/models/FOLDER.gguf]")
@click.option("--replace", is_flag=True, help="Though the file is there.")
@config_option
def convert(folder: Path, kind: str, output: Path | None, replace: bool, config: Path | None) -> None:
    """Make a GGUF of a sentence-transformers BERT checkpoint with safetensors, in FOLDER."""
    from backends.errors import ModelFileUnusable
    from backends.pulling.room import size_words
    from gateway.cli.models.common import shelf_of

    folder = folder.expanduser().absolute()
    try:
        from backends.llamacpp.checkpoint import read_checkpoint
        from backends.llamacpp.convert import write_bert

        target = output or shelf_of(load_or_stop(config)).path(f"{folder.name}.gguf")
        if target.exists() and not replace:
            stop(f"{target} is there already; choose another --output, or --replace it")
        checkpoint = read_checkpoint(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.draft")
        try:
            write_bert(checkpoint, draft, name=folder.name, kind=kind).replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except ModelFileUnusable as exc:
        stop(str(exc))
    except (ValueError, KeyError) as exc:
        stop(f"{folder} cannot be converted: {exc}")
    except OSError as exc:
        stop(f"{exc.filename or folder} cannot be used: {exc.strerror}")
    offered = target.name if output is None else target.absolute()
    click.echo(
        f"{target} is here ({size_words(target.stat().st_size)}, {kind}). Offer it to clients: chasqui models add {offered}"
    )
