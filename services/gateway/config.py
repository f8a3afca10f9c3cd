"""What the gateway is told."""

from dataclasses import dataclass

from services.common.key_end import CHECK_S
from services.common.settings import Platform


@dataclass(frozen=True, kw_only=True, slots=True)
class GatewayConfig:
    address: str  # host:port of gRPC
    http_address: str
    registry_address: str
    tokenizer_address: str
    service_key: str  # with which the gateway calls the other services
    resolve_ttl_s: float = 1.0  # how long an alias may still lead to where it led
    acceptance_ttl_s: float = 60.0  # how long it is remembered that somebody may use a version
    usage_every_s: float = 2.0  # between reports of what was used
    max_vocabularies: int = 8  # kept in memory, about 15 MB each at BLOOM's 250,680 ids
    check_keys_s: float = CHECK_S  # how often the keys of streams under way are verified again
    drain_s: float = 10.0  # for calls under way when told to stop

    @classmethod
    def from_platform(cls, platform: Platform) -> "GatewayConfig":
        return cls(
            address=platform.gateway_address,
            http_address=platform.gateway_http_address,
            registry_address=platform.registry_address,
            tokenizer_address=platform.tokenizer_address,
            service_key=platform.read_key("gateway"),
        )
