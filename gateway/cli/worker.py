"""`chasqui worker`: becomes the worker process, so that nothing of the gateway is loaded beside the engine."""

import os
import sys

import rich_click as click


@click.command(
    "worker", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Serve one GGUF over HTTP: --model PATH [--host --port --key-env NAME]; see `chasqui worker --help`."""
    os.execv(sys.executable, [sys.executable, "-m", "backends.llamacpp.worker", *arguments])  # noqa: S606
