"""What the registry and its relay are started with. Read from the environment once, in `main()`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.common.key_end import CHECK_S
from services.common.settings import Platform
from services.registry.deletion import KEPT_S
from services.registry.estimates import THIS_MACHINE, TrainingCluster
from services.registry.upload_limits import DEFAULT_LIMITS, UploadLimits
from services.registry.webhooks.addresses import PUBLIC_ONLY, AddressPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryConfig:
    address: str  # host:port to listen on
    database_url: str  # SQLAlchemy, async driver
    artifacts_url: str  # fsspec
    data_dir: Path
    pepper: bytes  # key of the HMAC under which API keys are stored
    job_lease_s: float = 15.0  # a trainer that is silent for longer has lost its job
    worker_lease_s: float = 10.0  # an inference worker that is silent for longer gets no calls
    max_lost_leases: int = 20  # a job whose workers died this often fails
    training_cluster: TrainingCluster = THIS_MACHINE  # what jobs' costs are estimated for
    check_keys_s: float = CHECK_S  # how often the keys of streams under way are verified again
    watch_poll_s: float = 0.3  # how soon WatchJob sees what another process wrote
    uploads: UploadLimits = DEFAULT_LIMITS
    webhook_policy: AddressPolicy = PUBLIC_ONLY  # where webhooks may go
    deleted_kept_s: float = KEPT_S  # how long a deleted version can be brought back for certain

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "RegistryConfig":
        platform = Platform.from_env(env)
        return cls(
            address=platform.registry_address,
            database_url=platform.database_url,
            artifacts_url=platform.artifacts_url,
            data_dir=platform.data_dir,
            pepper=read_pepper(platform.data_dir, env),
            job_lease_s=float(env.get("ANTHESIS_LEASE_SECONDS") or 15),
            training_cluster=TrainingCluster.parse(env.get("ANTHESIS_TRAINING_CLUSTER") or "this-machine"),
            uploads=UploadLimits.from_env(env),
            webhook_policy=AddressPolicy.from_env(env),
            deleted_kept_s=float(env.get("ANTHESIS_DELETED_KEPT_SECONDS") or KEPT_S),
            worker_lease_s=float(env.get("ANTHESIS_WORKER_LEASE_SECONDS") or 10),
            max_lost_leases=int(env.get("ANTHESIS_MAX_ATTEMPTS") or 20),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayConfig:
    database_url: str
    broker_url: str  # Celery
    poll_s: float = 0.2  # between looks at the outbox
    wake_again_s: float = 10.0  # a PENDING job that nobody took is sent again after this
    max_lost_leases: int = 20  # a job whose workers died this often fails

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "RelayConfig":
        platform = Platform.from_env(env)
        return cls(
            database_url=platform.database_url,
            broker_url=platform.broker_url,
            poll_s=float(env.get("ANTHESIS_RELAY_POLL_SECONDS") or 0.2),
            wake_again_s=float(env.get("ANTHESIS_WAKE_AGAIN_SECONDS") or 10),
            max_lost_leases=int(env.get("ANTHESIS_MAX_ATTEMPTS") or 20),
        )


def pepper_path(data_dir: Path) -> Path:
    return data_dir / "keys" / "pepper"


def read_pepper(data_dir: Path, env: Mapping[str, str] = os.environ) -> bytes:
    """ANTHESIS_KEY_PEPPER, else the data folder's file. Raises FileNotFoundError, saying how it is made."""
    if value := env.get("ANTHESIS_KEY_PEPPER"):
        return value.encode()
    path = pepper_path(data_dir)
    if not path.exists():
        raise FileNotFoundError(f"no pepper at {path}; `python -m services.registry.bootstrap` makes it")
    return path.read_bytes().strip()
