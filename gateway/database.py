"""The one SQL engine of a process, and the tables in it brought up to date."""

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

HEAD_REVISION = "0002"
"""The newest migration; a test compares. Known here so that a start with nothing to migrate need not load alembic."""

BUSY_TIMEOUT_MS = 5000


class DatabaseUnusable(Exception):
    """It cannot be opened or brought up to date; the message says what to do."""


async def open_database(url: str) -> AsyncEngine:
    """
    Raises:
        DatabaseUnusable
    """
    file = make_url(url).database or ""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(migrate, url)
    except (SQLAlchemyError, OSError) as exc:
        reason = getattr(exc, "orig", None) or exc
        raise DatabaseUnusable(
            f"the database {file} cannot be used: {reason}; check `store.url` and the file's permissions"
        ) from exc
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:", 1))
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def migrate(url: str) -> None:
    """Bring the tables to `HEAD_REVISION`. Does nothing, and loads nothing, when they are there."""
    engine = create_engine(url)
    event.listen(engine, "connect", _set_pragmas)
    try:
        if _revision(engine) != HEAD_REVISION:
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", "gateway:migrations")
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    finally:
        engine.dispose()


def _revision(engine: Any) -> str | None:
    with engine.connect() as connection:
        found = connection.execute(text("SELECT name FROM sqlite_master WHERE name = 'alembic_version'")).first()
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if found else None


def _set_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()
