"""What is checked before anything starts, and what the supervisor is told."""

import configparser
import socket
from pathlib import Path

import pytest

from infra.local.config import LocalConfig
from infra.local.platform import check_ports
from infra.local.processes import processes
from infra.local.supervisor import Supervisor, config_text


def config(data_dir: Path, **env: str) -> LocalConfig:
    return LocalConfig.from_env({"ANTHESIS_DATA": str(data_dir), **env})


def test_a_port_that_is_taken_is_named_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = {f"ANTHESIS_{name}_ADDRESS": "127.0.0.1:0" for name in ("REGISTRY", "TOKENIZER", "INFERENCE", "GATEWAY")}
        with pytest.raises(OSError, match=rf"port {port} of the gateway's HTTP .* ANTHESIS_GATEWAY_HTTP_ADDRESS=127"):
            check_ports(config(tmp_path, **free, ANTHESIS_GATEWAY_HTTP_ADDRESS=f"127.0.0.1:{port}"))


def test_every_port_has_its_own_variable(tmp_path: Path) -> None:
    remedies = [remedy for _, remedy in config(tmp_path, ANTHESIS_PLAYGROUND_PORT="9001").ports.values()]

    assert len(set(remedies)) == 6
    assert config(tmp_path, ANTHESIS_PLAYGROUND_PORT="9001").ports["playground"][0] == "127.0.0.1:9001"


def test_a_folder_too_deep_for_a_socket_is_named() -> None:
    with pytest.raises(ValueError, match=r"/deep/.*supervisor.sock is longer than 100 bytes.*ANTHESIS_DATA"):
        config(Path("/deep") / ("x" * 90))


def test_the_supervisor_never_gives_up(tmp_path: Path) -> None:
    settings = config(tmp_path)
    conf = configparser.RawConfigParser()
    conf.read_string(config_text(settings, processes(settings)))

    programs = [conf[name] for name in conf.sections() if name.startswith("program:")]
    assert len(programs) == 8
    for program in programs:
        assert program["autorestart"] == "true"
        assert int(program["startretries"]) > 100_000
        assert program["killasgroup"] == "true"


def test_a_percent_sign_in_a_path_is_not_interpolated(tmp_path: Path) -> None:
    settings = config(tmp_path / "100%")

    assert f"{tmp_path}/100%%/run/supervisor.sock" in config_text(settings, processes(settings))


def test_secrets_are_not_written_into_the_configuration(tmp_path: Path) -> None:
    secrets = {
        "ANTHESIS_DATABASE_URL": "postgresql+asyncpg://ada:sesame@db/anthesis",
        "ANTHESIS_BROKER_URL": "redis://:sesame@broker",
        "ANTHESIS_API_KEY": "sesame",
    }
    settings = config(tmp_path, **secrets)

    assert "sesame" not in config_text(settings, processes(settings))


def test_a_broker_of_ones_own_replaces_the_embedded_one(tmp_path: Path) -> None:
    names = [process.name for process in processes(config(tmp_path, ANTHESIS_BROKER_URL="redis://broker"))]

    assert "valkey" not in names
    assert "trainer" in names


def test_nothing_runs_in_a_new_folder(tmp_path: Path) -> None:
    assert not Supervisor(config(tmp_path)).is_running()
