"""The rules of the house that a tool cannot check."""

import re
from pathlib import Path

import pytest
import yaml
from sqlalchemy import create_engine, inspect
from sqlmodel import SQLModel

from backends.asgi import BodyTooLarge
from backends.errors import BackendError
from gateway.database import HEAD_REVISION, migrate
from gateway.errors import FRAMEWORK, MEANINGS, GatewayError
from gateway.settings import load
from gateway.settings_schema import GatewaySettings
from policies.errors import PolicyError
from retrieval.errors import RetrievalError
from tests.conftest import ROOT
from tests.house.reference import option_names, render
from tests.house.sizes import PACKAGES, check

SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def leaves(base: type[Exception]) -> set[type[Exception]]:
    below = base.__subclasses__()
    return set().union(*map(leaves, below)) if below else {base}


def test_every_error_has_a_meaning() -> None:
    ours = set().union(*(leaves(base) for base in (BackendError, PolicyError, RetrievalError, GatewayError)))
    assert ours - set(MEANINGS) == set()


def test_the_error_page_has_the_rows_of_the_table() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert rows >= {(str(m.status), m.type, m.code) for m in (*MEANINGS.values(), *FRAMEWORK.values())}
    assert ("500", "server_error", "internal_error") in rows


def test_statuses_stand_in_one_module_only() -> None:
    """Nobody but `gateway/errors.py` turns a failure into a status."""
    for path in SOURCES:
        if path.name in ("errors.py", "api.py", "health.py"):  # a worker's own front, and a report on health
            continue
        assert not re.search(r"status_code=(4|50)\d", path.read_text()), path
    assert BodyTooLarge in MEANINGS


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_keep_to_their_size(path: Path) -> None:
    assert list(check(path)) == []


def test_nothing_writes_a_package_index_address() -> None:
    for name in (
        "requirements.lock",
        "requirements-dev.lock",
        "requirements-build.lock",
        "config/models/minilm.lock",
        "Makefile",
        "Dockerfile",
    ):
        text = (ROOT / name).read_text()
        assert "--index-url" not in text, name
        assert "pypi.org" not in text, name


def test_the_lock_files_pin_every_package_by_hash() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock"):
        for entry in re.split(r"\n(?=\S)", (ROOT / name).read_text()):
            if not entry.startswith("#"):
                assert "==" in entry.split("\n")[0], (name, entry[:80])
                assert "--hash=sha256:" in entry, (name, entry[:80])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_migrations_make_exactly_the_tables_of_the_models(request: pytest.FixtureRequest, kind: str) -> None:
    import policies.generations
    import policies.keys
    import retrieval.tables

    if kind == "sqlite":
        url = f"sqlite:///{request.getfixturevalue('tmp_path')}/x.db"
    else:
        url = request.getfixturevalue("postgres").empty_database()
    migrate(url)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    made = inspect(engine)
    for table in SQLModel.metadata.tables.values():
        columns = {column["name"]: column["nullable"] for column in made.get_columns(table.name)}
        wanted = {column.name: bool(column.nullable) and not column.primary_key for column in table.columns}
        assert {
            name: bool(nullable) and not table.columns[name].primary_key for name, nullable in columns.items()
        } == wanted
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == HEAD_REVISION
    assert {policies.keys.keys_table.name, retrieval.tables.chunks.name} <= set(made.get_table_names())
    engine.dispose()


def test_a_line_of_the_journal_a_row_of_the_ledger_and_the_way_between_them_have_the_same_fields() -> None:
    from gateway.journal import Content, End
    from policies.ledger import contents, requests, usage
    from policies.ledger_sql import CONTENT, ROW, SUMS

    assert set(End.__struct_fields__) == set(ROW) == {column.name for column in requests.columns}
    assert set(Content.__struct_fields__) == set(CONTENT) == {column.name for column in contents.columns}
    assert set(SUMS) < {column.name for column in usage.columns}


def test_the_newest_migration_is_the_one_the_start_expects() -> None:
    revisions = [path.name[1:5] for path in (ROOT / "gateway" / "migrations" / "versions").glob("v*.py")]
    assert max(revisions) == HEAD_REVISION


def test_the_shipped_configuration_is_valid_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load(ROOT / "config" / "chasqui.yaml", {}).settings.models


def test_the_reference_configuration_is_valid_and_names_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "config" / "reference.yaml").read_text()
    load(ROOT / "config" / "reference.yaml", {"CI_CLIENT_KEY": "x" * 20, "HOOK_SECRET": "y" * 20})
    missing = [name for name in option_names(GatewaySettings) if not re.search(rf"\b{name}:", text)]
    assert missing == []
    assert yaml.safe_load(text)


def test_the_configuration_page_is_what_the_settings_say() -> None:
    page = ROOT / "docs" / "reference" / "configuration.md"
    assert page.read_text() == render(), "run: .venv/bin/python -m tests.house.reference"


def test_the_readme_and_docs_name_only_files_that_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
