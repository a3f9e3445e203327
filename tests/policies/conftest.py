"""A real database on disk, migrated once and copied for each test."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.database import migrate, open_database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_path(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "chasqui.db"))


@pytest.fixture
async def database(database_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = await open_database(f"sqlite:///{database_path}")
    yield engine
    await asyncio.shield(engine.dispose())
