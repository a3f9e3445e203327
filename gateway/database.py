"""The one SQL engine of a process, and the tables in it brought up to date: a SQLite file or a PostgreSQL server."""

import asyncio
import logging
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

log = logging.getLogger("chasqui")

CACHE_FILE = "embedding-cache.db"

HEAD_REVISION = "0004"
"""The newest migration; a test compares. Known here so that a start with nothing to migrate need not load alembic."""

BUSY_TIMEOUT_MS = 5000

MIGRATION_LOCK = 0x63686173717569
"""An advisory lock of PostgreSQL: who has it migrates, the others wait and find it done."""

POOL = {"pool_size": 5, "max_overflow": 10, "pool_timeout": 5, "pool_pre_ping": True}

CONNECT = {
    "connect_timeout": "5",
    "tcp_user_timeout": "5000",  # ms that what was sent may stay without a sign from the other end
    "application_name": "chasqui",
    "client_encoding": "utf8",
}
"""How to connect to PostgreSQL where the address says nothing else."""

ADVICE = {
    "password authentication failed": "check the user and the password in `store.url`; what is special in a password is "
    "written as in any address (%40 for @)",
    "no password supplied": "give one in `store.url`, or in PGPASSWORD",
    r"database .* does not exist": "create it first: CREATE DATABASE … ENCODING 'UTF8'",
    "permission denied for schema|no schema has been selected": "GRANT CREATE ON SCHEMA public TO this user, or make it "
    "the owner of the database",
}


class DatabaseUnusable(Exception):
    """It cannot be opened or brought up to date; the message says what to do."""


async def open_database(url: str) -> AsyncEngine:
    """
    Args:
        url: `sqlite:///path` or `postgresql://user:password@host:port/database`.

    Raises:
        DatabaseUnusable
    """
    parsed = make_url(url)
    try:
        if not _is_postgresql(parsed):
            Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(migrate, url)
    except (SQLAlchemyError, OSError) as exc:
        raise DatabaseUnusable(_explain(parsed, exc)) from exc
    if _is_postgresql(parsed):
        return create_async_engine(_with_driver(parsed), **_options(parsed), **POOL)
    # No values in messages: they are keys' digests, and the texts of documents.
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:", 1), hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def cache_database(database: AsyncEngine, home: Path) -> AsyncEngine:
    """Where vectors are cached: beside SQLite a file of their own, which may be deleted at any time; on PostgreSQL the same database.

    A file that SQLite does not recognise is put aside.
    """
    if database.dialect.name == "postgresql":
        return database
    path = home / CACHE_FILE
    home.mkdir(parents=True, exist_ok=True)
    if _found_broken(path).exists():
        _put_aside(path, "it was found broken while it was in use")
        return _cache_engine(path)
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as exc:
        if exc.sqlite_errorcode in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            _put_aside(path, str(exc))
        else:  # locked, perhaps; it is left alone
            log.warning("%s cannot be opened now (%s); vectors are computed until it can", path, exc)
    return _cache_engine(path)


def _found_broken(path: Path) -> Path:
    """A mark for the next start: a file that is in use cannot be replaced."""
    return path.with_suffix(".found-broken")


def _put_aside(path: Path, why: str) -> None:
    broken = path.with_suffix(".broken")
    log.error("%s is unusable (%s); it is put aside as %s, and vectors are computed again", path, why, broken.name)
    for rest in (path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"), _found_broken(path)):
        rest.unlink(missing_ok=True)
    with suppress(OSError):
        path.replace(broken)


def _cache_engine(path: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _set_pragmas)

    @event.listens_for(engine.sync_engine, "handle_error")
    def note(context: ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
            with suppress(OSError):
                _found_broken(path).touch()

    return engine


def migrate(url: str) -> None:
    """Bring the tables to `HEAD_REVISION`. Does nothing, and loads nothing, when they are there."""
    engine = _sync_engine(make_url(url))
    try:
        with engine.connect() as connection:
            revision = _revision(connection)
        if revision != HEAD_REVISION:
            from alembic import command
            from alembic.config import Config

            config = Config()
            config.set_main_option("script_location", "gateway:migrations")
            with engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    _take_turn(connection)
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
    finally:
        engine.dispose()


def _sync_engine(url: URL) -> Engine:
    if _is_postgresql(url):
        return create_engine(_with_driver(url), **_options(url))
    engine = create_engine(url)
    event.listen(engine, "connect", _set_pragmas)
    return engine


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _set_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _is_postgresql(url: URL) -> bool:
    return url.get_backend_name() == "postgresql"


def _with_driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg")


def _options(url: URL) -> dict[str, Any]:
    unsaid = {name: value for name, value in CONNECT.items() if name not in url.query}
    # No prepared statements: they do not survive PgBouncer, nor another process that changes a table.
    return {"hide_parameters": True, "connect_args": {**unsaid, "prepare_threshold": None}}


def _take_turn(connection: Connection) -> None:
    """
    Raises:
        DatabaseUnusable: it cannot hold every text.
    """
    encoding = connection.execute(text("SHOW server_encoding")).scalar()
    if encoding != "UTF8":
        raise DatabaseUnusable(
            f"the database {_shown(connection.engine.url)} has the encoding {encoding}; create one with ENCODING 'UTF8'"
        )
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})


def _explain(url: URL, exc: Exception) -> str:
    """One line, without the password."""
    reason = str(getattr(exc, "orig", None) or exc).partition("\n")[0]
    advice = "check `store.url` and the file's permissions"
    if _is_postgresql(url):
        found = (words for pattern, words in ADVICE.items() if re.search(pattern, reason))
        advice = next(found, "check `store.url`, and that the server runs and can be reached from here")
    return f"the database {_shown(url)} cannot be used: {reason}; {advice}"


def _shown(url: URL) -> str:
    if not _is_postgresql(url):
        return url.database or ""
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)
