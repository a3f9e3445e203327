"""`chasqui models add`."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop
from gateway.settings import Loaded

if TYPE_CHECKING:
    from backends.gguf_head import Head

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
    from backends.llamacpp.sizing import settings_for
    from backends.machine import this_machine

    loaded = load_or_stop(config)
    try:
        model, path = located(file, loaded)
        head, size = examined(path)
    except ModelFileUnusable as exc:
        stop(str(exc))
    if serves is not None:
        head = head._replace(serves=serves)
    options, notes = settings_for(head, size, this_machine())
    name = usable(name_of(path) if name is None else name)
    backend = {"name": name, "engine": "llama_cpp", "model": model, **options}
    lines = {"backends": flow(backend), "models": flow({"name": name, "route": [name]})}
    for key, line in lines.items():
        click.echo(f"{key}:\n  - {line}")
    for note in (*notes, *secrets_in(model)):
        click.echo(f"note: {note}", err=True)
    if not dry_run:
        write(loaded, name, lines)
        click.echo(f"{loaded.path} has it: ask for model '{name}'")


def examined(path: Path) -> tuple["Head", int]:
    """What the file says, and the bytes of all files of the model.

    Raises:
        ModelFileUnusable: one of them is missing, damaged or cut.
    """
    from backends.gguf_head import check_whole, read_head
    from backends.pulling.shelf import files_of_model

    parts = files_of_model(path)
    for part in parts:
        check_whole(part)
    return read_head(path), sum(part.stat().st_size for part in parts)


def usable(name: str) -> str:
    from backends.settings import NAME

    if not re.fullmatch(NAME, name):
        stop(
            f"'{name}' is no name for a model: at most 128 letters, digits and . _ : / -, a letter or digit first; give one with --name"
        )
    return name


def secrets_in(model: str) -> list[str]:
    from backends.pulling.source import is_source, parse_source

    if is_source(model) and parse_source(model).is_secret:
        return ["its address holds something secret; put that into the environment and write ${NAME} in its place"]
    return []


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
    path = Path(file.removeprefix("file://").removeprefix("file:")).expanduser().absolute()
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
    draft = loaded.path.with_name(f".{loaded.path.name}.draft")  # beside it: relative paths mean the same
    behind = loaded.path.resolve()
    final = behind.with_name(draft.name)
    try:
        text = loaded.path.read_bytes().decode("utf-8")
        ends_dos = "\r\n" in text
        text = text.replace("\r\n", "\n")
        for key, line in lines.items():
            text = with_item(text, key, line)
        draft.write_bytes((text.replace("\n", "\r\n") if ends_dos else text).encode())
        draft.chmod(loaded.path.stat().st_mode & 0o777)
        load(draft)
        if final != draft:
            shutil.copy2(draft, final)
        final.replace(behind)
    except (ConfigInvalid, NotAList, yaml.YAMLError) as exc:
        stop(f"{loaded.path} cannot take it by itself ({exc}); write the lines above into it")
    except OSError as exc:
        stop(f"{loaded.path} cannot be written: {exc.strerror}; write the lines above into it")
    finally:
        for path in (draft, final):
            path.unlink(missing_ok=True)
