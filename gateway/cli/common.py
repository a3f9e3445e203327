"""What several commands need: a configuration, and an end with words instead of a traceback."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import rich_click as click

from gateway.settings import ConfigInvalid, Loaded, load

T = TypeVar("T")

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file [default: config/chasqui.yaml].",
)


def stop(message: str, *, code: int = 1) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)


def load_or_stop(config: Path | None, **overrides: Any) -> Loaded:
    try:
        return load(config, **overrides)
    except ConfigInvalid as exc:
        stop(str(exc))


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """A command's coroutine; a store that fails and a wrong name end it with one line."""
    from gateway.database import DatabaseUnusable
    from policies.errors import PolicyError

    try:
        return asyncio.run(work())
    except (DatabaseUnusable, PolicyError) as exc:
        stop(str(exc))


@asynccontextmanager
async def opened_keys(loaded: Loaded) -> AsyncIterator[Any]:
    """`policies.keys.Keys` over the configuration's database. A running gateway sees the changes within a second."""
    import time

    from gateway.database import open_database
    from policies.keys import Keys
    from policies.roles import all_roles

    database = await open_database(loaded.settings.store.url)
    try:
        yield Keys(database, all_roles(loaded.settings.roles), clock=time.time)
    finally:
        await database.dispose()
