"""The supervisor: its configuration file, and talking to it over its socket."""

import contextlib
import os
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from infra.local.config import LocalConfig
from infra.local.processes import Process
from services.common.settings import ROOT

LEFTOVER_GRACE_S = 5.0


def config_text(config: LocalConfig, processes: Iterable[Process]) -> str:
    """supervisord.conf. Children restart whenever they end, and the supervisor never gives up on them.

    Only a process itself is asked to stop: it ends its own children in order (an engine drains, a trainer gives its job
    back). One that does not is killed with its group.
    """
    sections = [
        f"""[unix_http_server]
file={_escape(config.supervisor_socket)}
chmod=0700

[supervisord]
directory={_escape(ROOT)}
logfile={_escape(config.log_dir / "supervisord.log")}
logfile_maxbytes=10MB
logfile_backups=1
pidfile={_escape(config.run_dir / "supervisord.pid")}
childlogdir={_escape(config.log_dir)}
environment={_environment(config.environment)}

[supervisorctl]
serverurl=unix://{_escape(config.supervisor_socket)}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
    ]
    for process in processes:
        command = " ".join([sys.executable, *process.args])
        unset = {name: value for name, value in process.environment.items() if name not in os.environ}
        sections.append(
            f"""[program:{process.name}]
command={_escape(command)}
environment={_environment(unset)}
priority={process.priority}
autorestart=true
startsecs={process.start_s}
startretries=1000000
killasgroup=true
stopwaitsecs={process.stop_wait_s}
redirect_stderr=true
stdout_logfile={_escape(config.log_dir / (process.name + ".log"))}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""
        )
    return "\n".join(sections)


def _environment(values: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in values.items())


def _escape(value: object) -> str:
    return str(value).replace("%", "%%")


class Supervisor:
    """The supervisor of one data folder."""

    def __init__(self, config: LocalConfig) -> None:
        self._config = config
        self._conf = config.run_dir / "supervisord.conf"

    @property
    def _rpc(self) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._config.supervisor_socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def is_running(self) -> bool:
        try:
            self._rpc.getState()
        except (OSError, xmlrpc.client.Error):
            return False
        return True

    def configured(self) -> str:
        """What the running supervisor was configured with."""
        return self._conf.read_text()

    def start(self, processes: Iterable[Process]) -> None:
        """Start it and all processes. Raises OSError with its words when it refuses."""
        for folder in (self._config.run_dir, self._config.log_dir):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._conf.write_text(config_text(self._config, processes))
        self._conf.chmod(0o600)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._conf)]
        started = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if started.returncode != 0:
            raise OSError(f"supervisord did not start: {(started.stderr or started.stdout).strip()}")

    def start_stopped(self) -> None:
        """Start what was stopped by hand."""
        self._rpc.startAllProcesses(False)

    def states(self) -> dict[str, str]:
        """Name of each process -> RUNNING, STARTING, BACKOFF, ..."""
        return {info["name"]: info["statename"] for info in self._rpc.getAllProcessInfo()}

    def describe(self) -> dict[str, str]:
        """Name of each process -> "pid 4711, uptime 0:01:02"."""
        return {info["name"]: info["description"] for info in self._rpc.getAllProcessInfo()}

    def stop(self) -> None:
        """Stop every process, then the supervisor; returns when all have ended."""
        pid = int(self._rpc.getPID())
        self._rpc.shutdown()
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.05)

    def end_leftovers(self) -> list[int]:
        """End processes that outlived a supervisor which was killed; return their pids."""
        marker = f"SUPERVISOR_SERVER_URL=unix://{self._config.supervisor_socket}".encode()
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if marker in _environ_of(pid)]
        for number in (15, 9):
            for pid in found:
                _signal(pid, number)
            deadline = time.monotonic() + LEFTOVER_GRACE_S
            while any(Path(f"/proc/{pid}").exists() for pid in found) and time.monotonic() < deadline:
                time.sleep(0.05)
        return found


def _environ_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
