"""compose.yaml and the Dockerfile, as far as they can be checked without a Docker engine."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.common.settings import ROOT

COMPOSE = shutil.which("docker-compose", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
OURS = ("bootstrap", "registry", "relay", "tokenizer", "inference", "gateway", "trainer", "playground")
SECRETS = {"ANTHESIS_DB_PASSWORD": "sesame", "ANTHESIS_S3_SECRET": "open"}


def run_config(**env: str) -> subprocess.CompletedProcess[str]:
    assert COMPOSE, "docker-compose is not installed; `make setup` installs it"
    command = [COMPOSE, "-f", "infra/compose.yaml", "config", "--format", "json"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


@cache
def services() -> dict[str, Any]:
    done = run_config(**SECRETS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


def test_the_configuration_is_valid_and_whole() -> None:
    assert services().keys() == {*OURS, "postgres", "redis", "storage"}


def test_a_secret_that_was_not_chosen_is_named() -> None:
    refused = run_config(ANTHESIS_S3_SECRET="open", ANTHESIS_DB_PASSWORD="")

    assert refused.returncode != 0
    assert "ANTHESIS_DB_PASSWORD" in refused.stderr


@pytest.mark.parametrize("name", OURS)
def test_every_command_names_a_module_that_exists(name: str) -> None:
    command = services()[name]["command"]

    assert command[:2] == ["python", "-m"]
    module = command[command.index("-A") + 1] if "-A" in command else command[2]
    assert importlib.util.find_spec(module), module
    if "run" in command:
        assert (ROOT / command[command.index("run") + 1]).is_file()


@pytest.mark.parametrize("name", OURS)
def test_every_image_is_built_from_extras_that_exist(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    build = services()[name]["build"]

    assert set(build["args"]["EXTRA"].split(",")) <= extras.keys()
    assert (Path(build["context"]) / build["dockerfile"]).is_file()


def test_the_dockerfile_copies_what_exists_and_what_is_not_ignored() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "infra/Dockerfile").read_text(), flags=re.MULTILINE)
    let_through = (ROOT / "infra/Dockerfile.dockerignore").read_text()

    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
        assert f"!{path}\n" in let_through, path


def test_a_container_that_needs_no_database_is_not_given_its_password() -> None:
    knowing = {name for name in OURS if "sesame" in json.dumps(services()[name])}

    assert knowing == {"bootstrap", "registry", "relay"}


def test_only_the_edge_is_published_and_on_loopback() -> None:
    ports = [(name, port) for name, service in services().items() for port in service.get("ports", [])]
    published = {(name, port["published"], port["host_ip"]) for name, port in ports}

    assert published == {
        ("gateway", "50050", "127.0.0.1"),
        ("gateway", "8080", "127.0.0.1"),
        ("registry", "50053", "127.0.0.1"),
        ("playground", "8501", "127.0.0.1"),
    }
