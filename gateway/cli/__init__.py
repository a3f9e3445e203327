"""The command line. Commands are loaded when they are called: `chasqui --help` should not wait for a web framework."""

import importlib
import sys

import rich_click as click

COMMANDS = {
    "serve": "Start the gateway.",
    "check": "Check a configuration without starting anything.",
    "keys": "Create, list, disable and remove keys.",
    "collections": "Fill, list, search and evaluate collections.",
    "models": "Suggest, pull, add, list, verify, remove and convert models.",
    "worker": "Serve one GGUF, for gateways on other hosts.",
    "chat": "Talk to a model in the terminal.",
}


class Commands(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gateway.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="chasqui")
def cli() -> None:
    """Chasqui: local models, providers, prompts and documents behind one OpenAI-compatible address."""


def main() -> None:
    try:
        cli()
    except KeyboardInterrupt:
        sys.exit(130)
