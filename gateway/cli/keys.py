"""`chasqui keys`: on the database itself, so it works whether or not a gateway runs."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, opened_keys, run

if TYPE_CHECKING:
    from policies.keys import KeyRow


@click.group("keys")
def command() -> None:
    """Create, list, disable and remove keys. A running gateway follows within a second."""


@command.command("create")
@click.option("--name", required=True, help="Who or what it is for.")
@click.option("--role", default="default", show_default=True)
@click.option("--expires-at", type=int, help="Unix seconds.")
@config_option
def create(name: str, role: str, expires_at: int | None, config: Path | None) -> None:
    """Create a key and print it, this once."""
    from policies.audit import CLI
    from policies.keys import NewKey

    loaded = load_or_stop(config)

    async def work() -> None:
        async with opened_keys(loaded) as keys:
            row, secret = await keys.create(NewKey(name, role, expires_at), by=CLI)
            click.echo(f"{row.id} for '{row.name}' in role '{row.role}'; the key, shown this once:", err=True)
            click.echo(secret)

    run(work)


@command.command("list")
@config_option
def list_keys(config: Path | None) -> None:
    """List keys, newest first. Secrets are not stored and cannot be listed."""
    from rich.console import Console
    from rich.table import Table

    loaded = load_or_stop(config)

    async def work() -> None:
        async with opened_keys(loaded) as keys:
            table = Table("id", "name", "role", "created", "state")
            after = None
            while rows := await keys.list(limit=1000, after=after):
                for row in rows:
                    created = datetime.fromtimestamp(row.created_at, UTC).strftime("%Y-%m-%d %H:%M")
                    table.add_row(row.id, row.name, row.role, created, _state(row))
                after = rows[-1].id
            Console().print(table)

    run(work)


def _state(row: "KeyRow") -> str:
    if row.disabled:
        return "disabled"
    return "expired" if row.expires_at is not None and row.expires_at <= time.time() else "active"


def _changing(verb: str, words: str, **changes: bool) -> None:
    @command.command(verb, help=words)
    @click.argument("key_id")
    @config_option
    def change(key_id: str, config: Path | None) -> None:
        from policies.audit import CLI

        loaded = load_or_stop(config)

        async def work() -> None:
            async with opened_keys(loaded) as keys:
                await keys.update(key_id, by=CLI, **changes)
                click.echo(f"{key_id} is {verb}d")

        run(work)


_changing("disable", "Make a key unusable; it stays listed.", disabled=True)
_changing("enable", "Make a disabled key usable again.", disabled=False)


@command.command("rotate")
@click.argument("key_id")
@config_option
def rotate(key_id: str, config: Path | None) -> None:
    """Give a key a new secret and print it, this once. The old one ends now."""
    from policies.audit import CLI

    loaded = load_or_stop(config)

    async def work() -> None:
        async with opened_keys(loaded) as keys:
            _, secret = await keys.rotate(key_id, by=CLI)
            click.echo(secret)

    run(work)


@command.command("delete")
@click.argument("key_id")
@config_option
def delete(key_id: str, config: Path | None) -> None:
    """Remove a key for good."""
    from policies.audit import CLI

    loaded = load_or_stop(config)

    async def work() -> None:
        async with opened_keys(loaded) as keys:
            await keys.delete(key_id, by=CLI)
            click.echo(f"{key_id} is deleted")

    run(work)
