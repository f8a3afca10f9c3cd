"""The whole platform on free ports under infra/local, with one small model that knows nothing yet."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from anthesis import Client, Settings
from anthesis.v1.registry_pb2 import Model, ModelFile, ModelVersion

from services.common.settings import ROOT
from tests.support.bloom_models import make_hf_folder
from tests.support.registry_server import free_address
from tests.support.tokenizers import small_tokenizer_json

VOCAB = 512
UP_TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalPlatform:
    url: str  # of the playground
    client: Client
    settings: Settings
    environment: Mapping[str, str]  # of its services


def environment(data_dir: Path) -> dict[str, str]:
    """That of a platform of its own."""
    names = ("TOKENIZER", "INFERENCE", "REGISTRY", "GATEWAY", "GATEWAY_HTTP")
    addresses = {f"ANTHESIS_{name}_ADDRESS": free_address() for name in names}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANTHESIS_")}
    port = free_address().rpartition(":")[2]
    return {**kept, **addresses, "ANTHESIS_DATA": str(data_dir), "ANTHESIS_PLAYGROUND_PORT": port}


@contextmanager
def running_platform(env: Mapping[str, str]) -> Iterator[None]:
    """`make up` and `make down`. Raises with what `up` said when it does not come up."""
    command = [sys.executable, "-m", "infra.local"]
    try:
        up = [*command, "up", "--timeout", str(UP_TIMEOUT_S)]
        done = subprocess.run(up, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        yield
    finally:
        subprocess.run([*command, "down"], cwd=ROOT, env=env, check=True, capture_output=True)


@pytest.fixture(scope="session")
def platform() -> Iterator[LocalPlatform]:
    data_dir = Path(tempfile.mkdtemp(prefix="an-"))
    env = environment(data_dir)
    try:
        with running_platform(env):
            settings = Settings.from_env(env)  # the first start has made the key
            with Client(settings) as client:
                add_seedling(client)
                url = f"http://127.0.0.1:{env['ANTHESIS_PLAYGROUND_PORT']}"
                yield LocalPlatform(url=url, client=client, settings=settings, environment=env)
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def add_seedling(client: Client) -> None:
    """Register, deploy and wait for `seedling`: random weights, big enough that a completion takes its time."""
    client.models.create(Model(name="seedling", licence="apache-2.0", languages=["en", "fr"]))
    add_version(client, "seedling", hidden=192, n_layer=8)
    client.aliases.set("seedling", "seedling@1")
    client.deployments.create("seedling")
    client.deployments.wait("seedling", timeout_s=120)


def add_version(client: Client, model: str, **shape: Any) -> ModelVersion:
    """A version of `model` with random weights (`make_hf_folder`)."""
    with tempfile.TemporaryDirectory() as made:
        folder = make_hf_folder(Path(made), vocab=VOCAB, **shape)
        paths = [folder / "config.json", *folder.glob("*.safetensors")]
        files = [ModelFile(path=path.name, digest=client.artifacts.upload(path).digest) for path in paths]
        tokenizer = client.artifacts.upload_bytes(small_tokenizer_json(VOCAB).encode())
    version = ModelVersion(
        model=model, licence="apache-2.0", tokenizer_digest=tokenizer.digest, files=files, source="import"
    )
    return client.models.create_version(version)


def anthesis(settings: Settings, *args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, against the platform of `settings`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTHESIS_")}
    addresses = (field.name for field in fields(settings) if field.name.endswith("_address"))
    here = {f"ANTHESIS_{name.upper()}": getattr(settings, name) for name in addresses}
    whole = inherited | here | {"ANTHESIS_API_KEY": settings.api_key} | env
    command = [sys.executable, "-m", "anthesis.cli", *args]
    done = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def tasks_file(tmp_path: Path) -> Path:
    """A MULTITASK dataset of words to repeat."""
    rows = [
        {"inputs": f"Say {word} twice:", "targets": f" {word} {word}"}
        for word in ("un", "deux", "trois", "quatre") * 16
    ]
    path = tmp_path / "repeat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
