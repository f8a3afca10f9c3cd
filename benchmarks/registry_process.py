"""A registry in a process of its own, on SQLite or on a PostgreSQL server that lives as long."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psycopg
from anthesis import Settings
from anthesis.channel import open_channel

from benchmarks.local_platform import free_ports
from services.common.settings import ROOT, Platform
from services.registry.bootstrap import bootstrap

DATABASES = ("sqlite", "postgresql")
START_S = 60


@contextmanager
def running_registry(data_dir: Path, database: str = "sqlite") -> Iterator[Settings]:
    """How to reach a registry of its own, whose data lie in `data_dir`. Raises grpc.FutureTimeoutError."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANTHESIS_")}
    env |= {"ANTHESIS_DATA": str(data_dir), "ANTHESIS_REGISTRY_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}
    with postgresql() if database == "postgresql" else _sqlite() as url:
        env |= {"ANTHESIS_DATABASE_URL": url} if url else {}
        platform = Platform.from_env(env)
        bootstrap(platform, env)
        process = subprocess.Popen([sys.executable, "-m", "services.registry.server"], env=env, cwd=ROOT)
        try:
            with open_channel(platform.registry_address, "") as channel:
                grpc.channel_ready_future(channel).result(timeout=START_S)
            yield Settings(api_key=platform.read_key("admin", {}), registry_address=platform.registry_address)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _sqlite() -> Iterator[str]:
    yield ""  # the data folder's own


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database on a server with its own settings. Raises FileNotFoundError where none is installed.

    Its data are synced as in production: a commit is on the disk.
    """
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="an-pg-"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # initdb refuses root
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    data, port = folder / "data", free_ports(1)[0]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(binaries / program), "-D", str(data), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    run("initdb", "--username=postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE benchmark")
        yield f"postgresql+asyncpg://postgres@127.0.0.1:{port}/benchmark"
    finally:
        run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).resolve().parent)
    if not found:
        raise FileNotFoundError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found[-1]
