"""A registry in a process of its own, and the `anthesis` command pointed at it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anthesis import Client, Settings

from bloom.tensors import expected_tensors
from services.common.settings import ROOT
from tests.support.registry_data import TINY, safetensors_bytes, tokenizer_bytes
from tests.support.registry_server import RegistryProcess, platform_env, read_keys, test_platform

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def registry() -> Iterator[RegistryProcess]:
    with tempfile.TemporaryDirectory(prefix="an-") as folder, RegistryProcess(test_platform(Path(folder))) as process:
        yield process


@pytest.fixture(scope="session")
def settings(registry: RegistryProcess) -> Settings:
    key = read_keys(registry.platform)["admin"]
    return Settings(api_key=key, registry_address=registry.platform.registry_address)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as client:
        yield client


@pytest.fixture(scope="session")
def environment(registry: RegistryProcess) -> dict[str, str]:
    env = platform_env(registry.platform)
    return {name: value for name, value in env.items() if name != "PYTHONPATH"}


@pytest.fixture
def anthesis(environment: dict[str, str]) -> Run:
    """The command in a process of its own, with output into pipes."""

    def run(*args: object, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "anthesis.cli", *map(str, args)]
        done = subprocess.run(command, env=environment | env, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def anthesis_json(anthesis: Run) -> Callable[..., Any]:
    """The command with --json: its document."""
    return lambda *args, **env: json.loads(anthesis(*args, "--json", **env).stdout)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as transformers writes it: two shards, an index, a tokenizer."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_hf()))
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    tensors = [(f"transformer.{name}", shape) for name, shape in expected_tensors(TINY).items()]
    weight_map = {}
    for number, part in enumerate((tensors[:7], tensors[7:]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors_bytes(dict(part)))
        weight_map |= dict.fromkeys(dict(part), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
