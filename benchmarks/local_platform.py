"""The whole platform under infra/local on free ports, with one model deployed."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.settings import ROOT, Platform

SERVICES = ("TOKENIZER", "INFERENCE", "REGISTRY", "GATEWAY", "GATEWAY_HTTP")
UP_TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where an OpenAI client finds the model."""

    base_url: str  # without /v1
    api_key: str
    model: str


def free_ports(count: int) -> list[int]:
    """All different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def serving(model: Path, name: str, engine: Mapping[str, str], *, work: Path) -> Iterator[Endpoint]:
    """Start the platform, import the folder, deploy it as `name`, and end everything.

    `engine`: environment of the worker. Raises CalledProcessError with the words of the command that failed.
    """
    data_dir = Path(tempfile.mkdtemp(prefix="an-", dir=work))
    ports = free_ports(len(SERVICES) + 1)
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANTHESIS_")}
    env |= {f"ANTHESIS_{one}_ADDRESS": f"127.0.0.1:{port}" for one, port in zip(SERVICES, ports, strict=False)}
    env |= {"ANTHESIS_DATA": str(data_dir), "ANTHESIS_PLAYGROUND_PORT": str(ports[-1]), **engine}
    platform = Platform.from_env(env)
    try:
        _run(env, "infra.local", "up", "--timeout", str(UP_TIMEOUT_S))
        env["ANTHESIS_API_KEY"] = key = platform.read_key("admin", {})
        importing = ("models", "import", f"benchmark/{name}", "--from", str(model), "--licence", "mit")
        _run(env, "anthesis.cli", *importing, "--alias", name, "--deploy")
        yield Endpoint(base_url=f"http://{platform.gateway_http_address}", api_key=key, model=name)
    finally:
        _run(env, "infra.local", "down")
        shutil.rmtree(data_dir, ignore_errors=True)


def _run(env: Mapping[str, str], module: str, *args: str) -> None:
    command = [sys.executable, "-m", module, *args]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command)
