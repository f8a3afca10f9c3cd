"""`up`, `down`, `logs`, `status`."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra.local.config import LocalConfig
from infra.local.processes import Process, processes
from infra.local.supervisor import Supervisor, config_text
from services.common.settings import ROOT

POLL_S = 0.2
TAIL_LINES = 30


class NotReady(Exception):
    """A process did not come up; the message ends with its log."""


def up(config: LocalConfig, *, timeout_s: float) -> None:
    """Start everything and wait until it answers; what runs already keeps running.

    Raises NotReady, OSError naming the port that is taken, ValueError when it runs with other settings.
    """
    started = time.monotonic()
    supervisor = Supervisor(config)
    wanted = processes(config)
    if supervisor.is_running():
        if supervisor.configured() != config_text(config, wanted):
            raise ValueError(f"the platform in {config.platform.data_dir} runs with other settings; `make down` first")
        supervisor.start_stopped()
    else:
        supervisor.end_leftovers()
        check_ports(config)
        bootstrap()
        supervisor.start(wanted)
    wait_until_ready(config, supervisor, wanted, timeout_s=timeout_s)
    print(f"The platform is up after {time.monotonic() - started:.1f} s.")
    print(f"  playground   http://{config.playground_address}")
    print(f"  OpenAI API   http://{config.platform.gateway_http_address}/v1")
    print(f"  admin's key  {config.platform.key_path('admin')}")
    print("  `make status`, `make logs`, `make down`")


def check_ports(config: LocalConfig) -> None:
    """Raise OSError naming the first port that something else listens on, and the variable that moves it."""
    for name, (address, remedy) in config.ports.items():
        host, _, port = address.rpartition(":")
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host.strip("[]"), int(port)))
            except OSError as error:
                raise OSError(
                    f"port {port} of the {name} cannot be had ({error.strerror}); choose another: {remedy}"
                ) from None


def bootstrap() -> None:
    """Schema, catalogue and keys. Raises OSError with its words when it fails."""
    command = [sys.executable, "-m", "services.registry.bootstrap"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"`python -m services.registry.bootstrap` failed:\n{done.stderr.strip()}")


def wait_until_ready(
    config: LocalConfig, supervisor: Supervisor, wanted: Sequence[Process], *, timeout_s: float
) -> None:
    """Print each process as it becomes ready. Raises NotReady with the log of one that does not."""
    started = time.monotonic()
    waiting = list(wanted)
    while waiting:
        states = supervisor.states()
        for process in list(waiting):
            if states.get(process.name) == "RUNNING" and process.ready():
                print(f"  {process.name:<11}ready after {time.monotonic() - started:.1f} s", flush=True)
                waiting.remove(process)
        if waiting and time.monotonic() - started > timeout_s:
            first = waiting[0]
            raise NotReady(
                f"{first.name} is {states.get(first.name, 'not there')} and does not answer after {timeout_s:g} s; "
                f"the end of {log_path(config, first.name)}:\n{tail(log_path(config, first.name))}"
            )
        time.sleep(POLL_S)


def down(config: LocalConfig) -> None:
    """Stop everything; does nothing where nothing runs."""
    supervisor = Supervisor(config)
    was_running = supervisor.is_running()
    if was_running:
        supervisor.stop()
    leftovers = supervisor.end_leftovers()
    print("The platform is down." if was_running or leftovers else "The platform was not running.")


def status(config: LocalConfig) -> bool:
    """Print each process's state; true when all are ready."""
    supervisor = Supervisor(config)
    if not supervisor.is_running():
        print("The platform is down; `make up` starts it.")
        return False
    states, descriptions = supervisor.states(), supervisor.describe()
    all_ready = True
    for process in processes(config):
        state = states.get(process.name, "not there")
        ready = state == "RUNNING" and process.ready()
        all_ready &= ready
        print(f"{process.name:<11}{'ready' if ready else state:<10}{descriptions.get(process.name, '')}")
    return all_ready


def logs(config: LocalConfig, name: str | None) -> None:
    """Become `tail`, following the log of one process or of all. Raises ValueError for an unknown name."""
    names = [process.name for process in processes(config)]
    if name is not None and name not in names:
        raise ValueError(f"no service {name!r}; choose one of {', '.join(names)}")
    paths = [str(log_path(config, wanted)) for wanted in ([name] if name else names)]
    os.execvp("tail", ["tail", "-n", str(TAIL_LINES), "-F", *paths])


def log_path(config: LocalConfig, name: str) -> Path:
    return config.log_dir / f"{name}.log"


def tail(path: Path) -> str:
    """The last lines of a log."""
    if not path.exists():
        return "(no log)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-TAIL_LINES:])
