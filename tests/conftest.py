"""What every test may use: real model files where they are, an asyncio loop, scratch folders."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from backends.llamacpp.synthetic import write_synthetic
from gateway.database import migrate, open_database
from tests.postgresql import Postgres, running_postgres
from tests.redis_server import RedisServer, running_redis

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that the gateway runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def synthetic_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama model with seeded random weights; it babbles."""
    return write_synthetic(tmp_path_factory.mktemp("models") / "synthetic.gguf", name="synthetic", seed=1)


@pytest.fixture(scope="session")
def minilm_gguf() -> Path:
    """The real MiniLM, as `chasqui models prepare` makes it; `make test` calls that first."""
    path = Path(os.environ.get("CHASQUI_HOME", ROOT / "var")) / "models" / "all-MiniLM-L6-v2.gguf"
    if not path.exists():
        pytest.fail("MiniLM is missing; run `make test`, or `.venv/bin/chasqui models prepare`")
    return path


@pytest.fixture(scope="session")
def stories_gguf() -> Path:
    """A real, tiny story model, where it lies beside the checkout."""
    path = SHARED / "models" / "stories260K.gguf"
    if not path.exists():
        pytest.skip("stories260K.gguf is not beside this checkout (../shared/models)")
    return path


@pytest.fixture(scope="session")
def tiktoken_dir() -> Path:
    """A folder with tiktoken's cl100k and o200k files."""
    path = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or SHARED / "tiktoken")
    if not path.is_dir():
        pytest.skip("no tiktoken files: set TIKTOKEN_CACHE_DIR, or put them into ../shared/tiktoken")
    return path


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis, started by the first test that wants it."""
    with running_redis() as server:
        yield server


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real database on disk, migrated once and copied for each test."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def database_path(empty_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(empty_database, tmp_path / "chasqui.db"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real server, started by the first test that wants it."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of one's own: what is stored is stored alike on both."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres").migrated_database())
    return f"sqlite:///{request.getfixturevalue('database_path')}"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = await open_database(database_url)
    yield engine
    await asyncio.shield(engine.dispose())
