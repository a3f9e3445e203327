"""One worker for all tests of a module that do no harm to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends.llamacpp.backend import LocalBackend
from tests.backends.llamacpp.local import running


@pytest.fixture(scope="module")
async def local(anyio_backend: str, synthetic_gguf: Path) -> AsyncIterator[LocalBackend]:
    async with running(synthetic_gguf) as backend:
        yield backend
