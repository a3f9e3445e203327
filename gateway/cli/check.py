"""`chasqui check`: everything that is wrong with a configuration, before it is in force."""

import json
from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, stop
from gateway.settings import Loaded


@click.command("check")
@config_option
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration, for editors.")
def command(config: Path | None, schema: bool) -> None:
    """Check a configuration: names, references, environment variables, model files, prompt files."""
    if schema:
        from gateway.settings_schema import GatewaySettings

        click.echo(json.dumps(GatewaySettings.model_json_schema(), indent=2))
        return
    loaded = load_or_stop(config)
    if problems := [*missing_models(loaded), *bad_prompts(loaded)]:
        stop("\n".join(problems))
    settings = loaded.settings
    click.echo(
        f"{loaded.path} is fine: {len(settings.models)} models, {len(settings.backends)} backends, "
        f"{len(settings.collections)} collections, {len(settings.roles)} roles"
    )


def missing_models(loaded: Loaded) -> Iterator[str]:
    from backends.errors import ModelFileUnusable
    from backends.settings import LlamaCppSettings
    from backends.sources import find_model

    for backend in loaded.settings.backends:
        if isinstance(backend, LlamaCppSettings) and not backend.auto_pull:
            try:
                find_model(backend.model, home=loaded.home, config_dir=loaded.path.parent)
            except ModelFileUnusable as exc:
                yield f"backend '{backend.name}': {exc}"


def bad_prompts(loaded: Loaded) -> Iterator[str]:
    from policies.errors import PromptInvalid
    from policies.prompts import load_prompts

    try:
        prompts = load_prompts(loaded.settings.prompts.paths, root=Path.cwd())
    except PromptInvalid as exc:
        yield str(exc)
        return
    for model in loaded.settings.models:
        if model.prompt and model.prompt not in prompts:
            yield f"model '{model.name}': no file has a prompt '{model.prompt}'"
