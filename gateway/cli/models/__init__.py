"""`chasqui models`: what a configuration offers, and the files behind it. One command per file."""

import rich_click as click

from gateway.cli.models.adding import add
from gateway.cli.models.converting import convert
from gateway.cli.models.listing import list_models
from gateway.cli.models.preparing import prepare
from gateway.cli.models.pulling import pull
from gateway.cli.models.removing import remove
from gateway.cli.models.suggesting import suggest
from gateway.cli.models.verifying import verify


@click.group("models")
def command() -> None:
    """Models: suggest, pull, add, list, verify, remove, convert; prepare the ones in the box."""


for one in (suggest, pull, add, list_models, verify, remove, convert, prepare):
    command.add_command(one)
