"""Where the local platform lives: the environment, read once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.settings import Platform

MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 107


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalConfig:
    """The platform's settings, and those of what only infra/local starts."""

    platform: Platform
    playground_address: str = "127.0.0.1:8501"
    embedded_broker: bool = True

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "LocalConfig":
        """Raises ValueError when the data folder's path is too long for a Unix socket."""
        config = cls(
            platform=Platform.from_env(env),
            playground_address=f"127.0.0.1:{env.get('ANTHESIS_PLAYGROUND_PORT') or 8501}",
            embedded_broker=not env.get("ANTHESIS_BROKER_URL"),
        )
        for socket in (config.supervisor_socket, config.valkey_socket):
            if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
                raise ValueError(
                    f"{socket} is longer than {MAX_SOCKET_PATH} bytes, too long for a Unix socket; "
                    "set ANTHESIS_DATA to a shorter path"
                )
        return config

    @property
    def run_dir(self) -> Path:
        return self.platform.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        return self.platform.data_dir / "logs"

    @property
    def supervisor_socket(self) -> Path:
        return self.run_dir / "supervisor.sock"

    @property
    def valkey_socket(self) -> Path:
        return self.run_dir / "valkey.sock"  # where Platform.broker_url looks

    @property
    def ports(self) -> Mapping[str, tuple[str, str]]:
        """What listens -> (address, variable that moves it)."""
        platform = self.platform
        return {
            "registry": (platform.registry_address, "ANTHESIS_REGISTRY_ADDRESS=127.0.0.1:PORT"),
            "tokenizer": (platform.tokenizer_address, "ANTHESIS_TOKENIZER_ADDRESS=127.0.0.1:PORT"),
            "inference": (platform.inference_address, "ANTHESIS_INFERENCE_ADDRESS=127.0.0.1:PORT"),
            "gateway": (platform.gateway_address, "ANTHESIS_GATEWAY_ADDRESS=127.0.0.1:PORT"),
            "gateway's HTTP": (platform.gateway_http_address, "ANTHESIS_GATEWAY_HTTP_ADDRESS=127.0.0.1:PORT"),
            "playground": (self.playground_address, "ANTHESIS_PLAYGROUND_PORT=PORT"),
        }

    @property
    def environment(self) -> Mapping[str, str]:
        """What children need to find each other, without secrets: it is written to a file."""
        platform = self.platform
        return {
            "ANTHESIS_DATA": str(platform.data_dir),
            "ANTHESIS_REGISTRY_ADDRESS": platform.registry_address,
            "ANTHESIS_TOKENIZER_ADDRESS": platform.tokenizer_address,
            "ANTHESIS_INFERENCE_ADDRESS": platform.inference_address,
            "ANTHESIS_GATEWAY_ADDRESS": platform.gateway_address,
            "ANTHESIS_GATEWAY_HTTP_ADDRESS": platform.gateway_http_address,
            "PYTHONUNBUFFERED": "1",
        }
