"""`chasqui keys`: on the database itself, so it works whether or not a gateway runs."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from gateway.cli.common import config_option, load_or_stop, opened_keys, run, stop

if TYPE_CHECKING:
    from policies.keys import KeyRow
    from policies.settings import LimitSettings

MAX_NAME_CHARS = 128
MAX_TIME_S = 253_402_300_799
"""The end of the year 9999."""

LIMIT = re.compile(r"(?P<measure>[a-z_]+)=(?P<amount>[0-9.]+)(?:/(?P<per>[0-9a-z]+))?(?:@(?P<model>\S+))?")


@click.group("keys")
def command() -> None:
    """Create, list, change and remove keys. A running gateway follows within a second."""


def narrowing(work: Callable[..., None]) -> Callable[..., None]:
    """The options that create and update share."""
    for option in reversed([
        click.option("--expires-at", type=click.IntRange(0, MAX_TIME_S), help="Unix seconds."),
        click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="MEASURE=AMOUNT[/PER][@MODEL]",
            help="requests=1000/1h, tokens=2000000/24h, cost_usd=5/month, concurrent=4, requests=10/1m@gpt-4*. Several times.",
        ),
        click.option("--model", "models", multiple=True, help="A glob of model names. Several times."),
        click.option("--collection", "collections", multiple=True, help="A glob of collections."),
        click.option("--prompt", "prompts", multiple=True, help="A glob of prompt templates."),
        click.option("--path", "paths", multiple=True, help="A glob of paths."),
        click.option(
            "--log-content", type=click.Choice(["on", "off"]), help="Keep what is asked and answered with it."
        ),
    ]):  # fmt: skip
        work = option(work)
    return work


@command.command("create")
@click.option("--name", required=True, callback=lambda _, __, name: checked_name(name), help="Who or what it is for.")
@click.option("--role", default="default", show_default=True)
@narrowing
@config_option
def create(
    name: str, role: str, expires_at: int | None, limits: tuple[str, ...], log_content: str | None,
    config: Path | None, **narrowed: tuple[str, ...],
) -> None:  # fmt: skip
    """Create a key and print it, this once."""
    from policies.audit import CLI
    from policies.keys import NewKey

    loaded = load_or_stop(config)
    new = NewKey(
        name,
        role,
        expires_at,
        limits=tuple(map(limit_of, limits)),
        narrowed=given(narrowed),
        log_content=log_content == "on",
    )

    async def work() -> None:
        async with opened_keys(loaded) as keys:
            row, secret = await keys.create(new, by=CLI)
            click.echo(f"{row.id} for '{row.name}' in role '{row.role}'; the key, shown this once:", err=True)
            click.echo(secret)

    run(work)


@command.command("update")
@click.argument("key_id")
@click.option("--name", callback=lambda _, __, name: checked_name(name))
@click.option("--role")
@narrowing
@config_option
def change(
    key_id: str, name: str | None, role: str | None, expires_at: int | None, limits: tuple[str, ...],
    log_content: str | None, config: Path | None, **narrowed: tuple[str, ...],
) -> None:  # fmt: skip
    """Change a key. What is not named stays; lists that are named replace what was there."""
    from policies.audit import CLI

    loaded = load_or_stop(config)
    plain = {"name": name, "role": role, "expires_at": expires_at}
    changes: dict[str, Any] = {field: value for field, value in plain.items() if value is not None}
    if limits:
        changes["limits"] = [limit_of(one).model_dump(exclude_none=True) for one in limits]
    if log_content is not None:
        changes["log_content"] = log_content == "on"

    async def work() -> None:
        async with opened_keys(loaded) as keys:
            if globs := given(narrowed):
                changes["narrowed"] = (await keys.get(key_id)).narrowed | globs
            await keys.update(key_id, by=CLI, **changes)
            click.echo(f"{key_id} is changed" if changes else "nothing was named to be changed")

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


def checked_name(name: str | None) -> str | None:
    if name is not None and (not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable()):
        raise click.BadParameter(f"has 1 to {MAX_NAME_CHARS} characters, all of them printable")
    return name


def given(narrowed: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {kind: list(globs) for kind, globs in narrowed.items() if globs}


def limit_of(words: str) -> "LimitSettings":
    """`requests=1000/1h@gpt-4*`, or the end of the command with words of what is wrong."""
    from pydantic import ValidationError

    from policies.settings import LimitSettings

    match = LIMIT.fullmatch(words)
    if match is None:
        stop(f"--limit {words}: write it like requests=1000/1h or cost_usd=5/month@gpt-4*", code=2)
    fields = {match["measure"]: match["amount"], "per": match["per"], "model": match["model"]}
    try:
        return LimitSettings.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as exc:
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"]))
        stop(
            f"--limit {words}: {where}{': ' if where else ''}{str(error['msg']).removeprefix('Value error, ')}", code=2
        )


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
