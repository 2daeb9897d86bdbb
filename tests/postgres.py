"""A PostgreSQL cluster for tests, in a temporary folder and reached by a socket there."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
import pytest
from require import missing


class Postgres:
    """A cluster; it runs as the user postgres where the tests run as root, because PostgreSQL refuses root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._folder = programs, folder
        self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*user, str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        said = self._folder / f"{program}.log"
        with said.open("ab") as log:  # a file, because the server would keep a pipe open
            done = subprocess.run(command, stdout=log, stderr=log, cwd=self._folder, check=False)
        assert done.returncode == 0, said.read_text()

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-o", f"-c listen_addresses='' -c fsync=off -k {self._folder}")

    def stop(self) -> None:
        """Stop immediately, as in a crash; `start` recovers all committed data."""
        self._run("pg_ctl", "stop", "-m", "immediate")

    def database(self) -> str:
        """Return the URL of a new, empty schema, which is faster to create than a database."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(f"host={self._folder} user=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"postgresql+psycopg://postgres@/postgres?host={self._folder}&options=-csearch_path%3D{name}"


def _programs() -> Path:
    """Return the folder of initdb, which is not in the PATH on Debian."""
    on_path: Sequence[str] = [path] if (path := shutil.which("initdb")) else []
    found = [Path(path).resolve().parent for path in on_path] + sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return found[0] if found else missing("postgresql")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    programs = _programs()
    folder = Path(
        tempfile.mkdtemp(prefix="pg", dir="/tmp")
    )  # a socket's path must be short, and only root can read pytest's
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        server = Postgres(programs, folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)
