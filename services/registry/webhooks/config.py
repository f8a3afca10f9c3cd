"""What webhooks are sent with. Read from the environment once, in the relay's `main()`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.settings import Platform
from services.registry.config import read_pepper
from services.registry.webhooks.addresses import AddressPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class SenderConfig:
    pepper: bytes  # the registry's
    policy: AddressPolicy
    poll_s: float = 0.2  # between looks at the outbox
    timeout_s: float = 10.0  # of a delivery, from its connection to the answer
    max_attempts: int = 10
    retry_s: float = 5.0  # after the first failed attempt; then four times as long, and so on
    max_retry_s: float = 12 * 3600.0
    max_under_way: int = 32  # webhooks that are sent to at once
    keep_days: int = 30  # a delivery that has been delivered or given up

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "SenderConfig":
        return cls(
            pepper=read_pepper(Platform.from_env(env).data_dir, env),
            policy=AddressPolicy.from_env(env),
            timeout_s=float(env.get("ANTHESIS_WEBHOOK_TIMEOUT_SECONDS") or 10),
            max_attempts=int(env.get("ANTHESIS_WEBHOOK_ATTEMPTS") or 10),
            retry_s=float(env.get("ANTHESIS_WEBHOOK_RETRY_SECONDS") or 5),
        )
