"""A real PostgreSQL for tests, where one is installed: one server for the whole run, a fresh database per test."""

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import psycopg

MISSING = "left out: PostgreSQL is not installed (Debian: apt-get install postgresql)"

_numbers = itertools.count()


def find_binaries() -> Path | None:
    """The folder with initdb and pg_ctl of the newest installed version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if path := shutil.which("initdb"):
        folders.append(Path(path).resolve().parent)
    return next((folder for folder in reversed(folders) if (folder / "pg_ctl").exists()), None)


class PostgresServer:
    """A server on a free loopback port, its data in /tmp, stopped when the test process ends."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="an-pg-"))
        # initdb refuses root; the image's own user owns the data then.
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(self._folder, "postgres", "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        options = ["--username=postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
        self._run("initdb", "-D", self._data, *options)
        self.start()
        atexit.register(self.stop)

    def start(self, timeout_s: float = 60) -> None:
        """After `kill`, too: it starts once the processes of the server that was killed have ended."""
        settings = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._run(
                    "pg_ctl", "-D", self._data, "-w", "-l", str(self._folder / "log"), "-o", settings, "start"
                )
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL of the first process: the others find out by themselves."""
        os.kill(int(Path(self._data, "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, timeout=60)

    def url(self, database: str) -> str:
        """For SQLAlchemy's async engine."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self._port}/{database}"

    def create_database(self, template: str = "template0") -> str:
        """A fresh database with what is in `template`; return its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        with psycopg.connect(f"host=127.0.0.1 port={self._port} user=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")  # type: ignore[arg-type]
        return name

    def stop(self) -> None:
        atexit.unregister(self.stop)
        with contextlib.suppress(subprocess.CalledProcessError):  # it was killed
            self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        # Thousands of tests leave as many databases: minutes of deleting, which nobody has to wait for.
        subprocess.Popen(["rm", "-rf", self._folder], start_new_session=True, stderr=subprocess.DEVNULL)


@lru_cache
def shared_server() -> PostgresServer | None:
    """The run's server, started when first asked for; None where PostgreSQL is not installed."""
    binaries = find_binaries()
    return PostgresServer(binaries) if binaries else None
