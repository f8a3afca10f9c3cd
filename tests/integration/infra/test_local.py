"""The whole platform under supervisor, on free ports and a folder of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anthesis import Client, Settings

from infra.local.config import LocalConfig
from infra.local.supervisor import Supervisor
from services.common.settings import ROOT
from tests.support.bloom_models import make_hf_folder
from tests.support.registry_server import free_address
from tests.support.tokenizers import write_small_tokenizer

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    folder = tempfile.mkdtemp(prefix="an-")
    names = ("REGISTRY", "TOKENIZER", "INFERENCE", "GATEWAY", "GATEWAY_HTTP")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTHESIS_")}
    yield {
        **inherited,
        **{f"ANTHESIS_{name}_ADDRESS": free_address() for name in names},
        "ANTHESIS_PLAYGROUND_PORT": free_address().rpartition(":")[2],
        "ANTHESIS_DATA": folder,
    }
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def local(environment: dict[str, str]) -> Command:
    def run(*args: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.local", *args]
        done = subprocess.run(command, env=environment | env, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def platform(environment: dict[str, str], local: Command) -> Iterator[LocalConfig]:
    """The platform, up; at the end, down with nothing left of it."""
    local("up", "--timeout", "200")
    config = LocalConfig.from_env(environment)
    yield config
    local("down")
    assert not Supervisor(config).end_leftovers()


@pytest.fixture
def client(environment: dict[str, str], platform: LocalConfig) -> Iterator[Client]:
    with Client(Settings.from_env(environment)) as client:
        yield client


def pids(config: LocalConfig) -> dict[str, int]:
    return {info["name"]: int(info["pid"]) for info in Supervisor(config)._rpc.getAllProcessInfo()}


def eventually(condition: Callable[[], bool], timeout_s: float = 100) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def test_every_service_answers(environment: dict[str, str], platform: LocalConfig, local: Command) -> None:
    status = local("status").stdout.splitlines()

    names = ["valkey", "registry", "relay", "tokenizer", "inference", "gateway", "trainer", "playground"]
    assert [line.split()[:2] for line in status] == [[name, "ready"] for name in names]
    asked = subprocess.run(
        [sys.executable, "-m", "anthesis.cli", "status", "--json"], env=environment, capture_output=True, text=True
    )
    services = json.loads(asked.stdout)["services"]
    assert {service["status"] for service in services.values()} == {"SERVING"}
    assert asked.returncode == 0


def test_a_checkpoint_made_by_transformers_is_imported_deployed_and_answers(
    environment: dict[str, str], platform: LocalConfig, tmp_path: Path
) -> None:
    make_hf_folder(tmp_path, vocab=512, sharded=True)
    write_small_tokenizer(tmp_path)

    def anthesis(*args: str) -> str:
        command = [sys.executable, "-m", "anthesis.cli", *args]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout

    anthesis("models", "import", "lab/odd", "--from", str(tmp_path), "--licence", "mit", "--alias", "odd", "--deploy")
    tokens = json.loads(anthesis("tokenize", "odd", "人人生而自由 </s>", "--json"))
    greedy = ("--temperature", "0", "--max-tokens", "8")
    streamed = anthesis("generate", "odd", "All human beings", *greedy)
    answer = json.loads(anthesis("generate", "odd", "All human beings", *greedy, "--json"))
    score = json.loads(anthesis("score", "odd", "free", "--context", "born ", "--json"))

    assert tokens["text"] == "人人生而自由 </s>"
    assert len(tokens["ids"]) == len(tokens["tokens"]) > 1
    assert streamed == answer["text"] + "\n"
    assert answer["model_version"] == "lab/odd@1"
    assert (answer["usage"]["completion_tokens"], len(answer["ids"])) == (8, 8)
    assert score["num_bytes"] == 4
    assert score["bits_per_byte"] > 0


def test_what_dies_is_restarted(platform: LocalConfig, local: Command, client: Client) -> None:
    before = pids(platform)
    for name in ("registry", "valkey"):
        os.kill(before[name], signal.SIGKILL)

    eventually(lambda: all(pids(platform)[name] not in (0, before[name]) for name in ("registry", "valkey")))
    eventually(lambda: "ready" in local("up", "--timeout", "100").stdout)  # waits for health

    after = pids(platform)
    assert client.models.list()
    assert {name for name in before if before[name] != after[name]} == {"registry", "valkey"}


def test_no_key_is_on_a_command_line(platform: LocalConfig) -> None:
    keys = [path.read_text().strip() for path in (platform.platform.data_dir / "keys").iterdir()]
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in pids(platform).values()]

    assert len(keys) >= 6
    assert not [key for key in keys for line in lines if key in line]


def test_its_sockets_and_keys_are_its_owners_alone(platform: LocalConfig) -> None:
    private = [platform.supervisor_socket, platform.valkey_socket, *(platform.platform.data_dir / "keys").iterdir()]

    assert not [path for path in private if path.stat().st_mode & 0o077]


def test_other_settings_are_refused_while_it_runs(platform: LocalConfig, local: Command) -> None:
    refused = local("up", code=1, ANTHESIS_PLAYGROUND_PORT="1")

    assert "runs with other settings; `make down` first" in refused.stderr


def test_a_second_platform_on_the_same_ports_is_refused(platform: LocalConfig, local: Command) -> None:
    with tempfile.TemporaryDirectory(prefix="an-") as other:
        refused = local("up", code=1, ANTHESIS_DATA=other)

        port = platform.platform.registry_address.rpartition(":")[2]
        assert refused.stderr.startswith(f"error: port {port} of the registry cannot be had")
        assert "ANTHESIS_REGISTRY_ADDRESS" in refused.stderr
        assert not list(Path(other).iterdir())


def test_state_survives_a_killed_supervisor_and_a_new_start(
    platform: LocalConfig, local: Command, client: Client
) -> None:
    artifact = client.artifacts.upload_bytes(b"kept")
    client.keys.create("kept", 1)
    supervisor, children = int(Supervisor(platform)._rpc.getPID()), pids(platform)

    os.kill(supervisor, signal.SIGKILL)
    local("up", "--timeout", "200")  # ends the orphans, which hold the ports

    assert not [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()]
    assert client.artifacts.get(artifact.digest).size_bytes == 4
    assert "kept" in {key.principal for key in client.keys.list()}
    assert local("down").stdout == "The platform is down.\n"
    assert local("down").stdout == "The platform was not running.\n"
    assert "is down" in local("status", code=1).stdout
