"""`chasqui models add`."""

import re
from pathlib import Path
from typing import Any

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop
from gateway.settings import Loaded

QUANTIZATION = re.compile(r"[-._](i?q\d\w*|f16|f32|bf16|fp16|mxfp4|\d{5}-of-\d{5}|gguf)$", re.IGNORECASE)


@click.command("add")
@click.argument("file")
@click.option("--name", help="That clients ask for [default: the file's, without its quantization].")
@click.option("--serves", type=click.Choice(["chat", "embeddings", "rerank"]), help="[default: what the file says]")
@click.option("--dry-run", is_flag=True, help="Show what would be written.")
@config_option
def add(file: str, name: str | None, serves: str | None, dry_run: bool, config: Path | None) -> None:
    """Write a backend and a model for FILE into the configuration, with context, slots and threads that fit this machine.

    FILE: a name of `home/models` (`chasqui models list`), a path, or the source that it was pulled from. A running gateway takes the
    change over by itself.
    """
    from backends.errors import ModelFileUnusable
    from backends.gguf_head import read_head
    from backends.llamacpp.sizing import settings_for
    from backends.machine import this_machine

    loaded = load_or_stop(config)
    try:
        model, path = located(file, loaded)
        head = read_head(path)
    except ModelFileUnusable as exc:
        stop(str(exc))
    if serves is not None:
        head = head._replace(serves=serves)
    options, notes = settings_for(head, path.stat().st_size, this_machine())
    name = name or name_of(path)
    backend = {"name": name, "engine": "llama_cpp", "model": model, **options}
    lines = {"backends": flow(backend), "models": flow({"name": name, "route": [name]})}
    for key, line in lines.items():
        click.echo(f"{key}:\n  - {line}")
    for note in notes:
        click.echo(f"note: {note}", err=True)
    if not dry_run:
        write(loaded, name, lines)
        click.echo(f"{loaded.path} has it: ask for model '{name}'")


def located(file: str, loaded: Loaded) -> tuple[str, Path]:
    """What the configuration calls it, and where it is.

    Raises:
        ModelFileUnusable
    """
    from backends.errors import ModelFileUnusable
    from backends.pulling.source import is_source
    from backends.sources import MODELS, find_model

    places = {"home": loaded.home, "config_dir": loaded.path.parent}
    if is_source(file):
        return file, find_model(file, **places)
    for model in dict.fromkeys((f"{MODELS}/{file}", f"{MODELS}/{file}.gguf", file)):
        try:
            path = find_model(model, **places)
        except ModelFileUnusable:
            continue
        return model, path
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise ModelFileUnusable(
            f"there is no model file {file}; `chasqui models list` shows those that are here, `chasqui models pull` fetches others"
        )
    return str(path), path


def name_of(path: Path) -> str:
    """`Qwen3-4B-Q4_K_M.gguf` -> `qwen3-4b`."""
    name = path.stem
    while (shorter := QUANTIZATION.sub("", name)) != name:
        name = shorter
    return name.lower()


def flow(entry: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).strip()


def write(loaded: Loaded, name: str, lines: dict[str, str]) -> None:
    """Whole and valid, or not at all; comments and everything else stay."""
    import yaml

    from gateway.settings import ConfigInvalid, load
    from gateway.yaml_text import NotAList, with_item

    if name in {one.name for one in (*loaded.settings.backends, *loaded.settings.models)}:
        stop(f"{loaded.path} has a '{name}' already; choose another with --name")
    draft = loaded.path.with_name(f".{loaded.path.name}.draft")
    try:
        text = loaded.path.read_text("utf-8")
        for key, line in lines.items():
            text = with_item(text, key, line)
        draft.write_text(text, "utf-8")
        draft.chmod(loaded.path.stat().st_mode & 0o777)
        load(draft)
        draft.replace(loaded.path)
    except (ConfigInvalid, NotAList, yaml.YAMLError) as exc:
        stop(f"{loaded.path} cannot take it by itself ({exc}); write the lines above into it")
    except OSError as exc:
        stop(f"{loaded.path} cannot be written: {exc.strerror}; write the lines above into it")
    finally:
        draft.unlink(missing_ok=True)
