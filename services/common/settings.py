"""Where the parts of the platform find each other: the environment, read once in a service's `main()`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Platform:
    """Addresses and stores that several services share."""

    data_dir: Path
    database_url: str  # SQLAlchemy, async driver
    artifacts_url: str  # fsspec: a folder, or s3://bucket/prefix
    broker_url: str  # Celery
    tokenizer_address: str  # host:port of each gRPC service
    inference_address: str
    registry_address: str
    gateway_address: str
    gateway_http_address: str

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Platform":
        data_dir = Path(env.get("ANTHESIS_DATA") or ROOT / ".anthesis").expanduser().resolve()
        return cls(
            data_dir=data_dir,
            database_url=env.get("ANTHESIS_DATABASE_URL") or f"sqlite+aiosqlite:///{data_dir}/registry.db",
            artifacts_url=env.get("ANTHESIS_ARTIFACTS_URL") or str(data_dir / "artifacts"),
            broker_url=env.get("ANTHESIS_BROKER_URL") or f"redis+socket://{data_dir}/run/valkey.sock?virtual_host=0",
            tokenizer_address=env.get("ANTHESIS_TOKENIZER_ADDRESS") or "127.0.0.1:50051",
            inference_address=env.get("ANTHESIS_INFERENCE_ADDRESS") or "127.0.0.1:50052",
            registry_address=env.get("ANTHESIS_REGISTRY_ADDRESS") or "127.0.0.1:50053",
            gateway_address=env.get("ANTHESIS_GATEWAY_ADDRESS") or "127.0.0.1:50050",
            gateway_http_address=env.get("ANTHESIS_GATEWAY_HTTP_ADDRESS") or "127.0.0.1:8080",
        )

    def key_path(self, principal: str) -> Path:
        """File that holds the API key of a service or of the admin (mode 600)."""
        return self.data_dir / "keys" / f"{principal}.key"

    def read_key(self, principal: str, env: Mapping[str, str] = os.environ) -> str:
        """The key with which `principal` calls others: ANTHESIS_SERVICE_KEY, else the data folder's file.

        Raises FileNotFoundError, saying how the key is made.
        """
        key = env.get("ANTHESIS_SERVICE_KEY")
        if key:
            return key
        path = self.key_path(principal)
        if not path.exists():
            raise FileNotFoundError(f"no API key at {path}; `python -m services.registry.bootstrap` makes it")
        return path.read_text().strip()
