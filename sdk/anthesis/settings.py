"""Where the platform is and who we are: the environment, read once when a client is made."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from anthesis.errors import UnauthenticatedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Addresses ("host:port") of the services and the API key to call them with."""

    api_key: str = field(repr=False)
    gateway_address: str = "127.0.0.1:50050"
    tokenizer_address: str = "127.0.0.1:50051"  # internal: asked for tokenizer training
    inference_address: str = "127.0.0.1:50052"  # internal: asked for a worker's status
    registry_address: str = "127.0.0.1:50053"
    gateway_http_address: str = "127.0.0.1:8080"
    root_certificates: bytes | None = field(default=None, repr=False)  # PEM; None: no TLS

    def __post_init__(self) -> None:
        """Raises UnauthenticatedError for a key that no header can carry; it is not shown."""
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UnauthenticatedError(
                "the API key has a line break or a character outside ASCII, which no key has; "
                "copy it again (ANTHESIS_API_KEY, or the file keys/admin.key of the data folder)"
            )

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ, *, cwd: Path | None = None) -> "Settings":
        """Read ANTHESIS_*_ADDRESS, ANTHESIS_TLS_CA and the API key.

        Raises UnauthenticatedError, saying where it looked, when there is no key.
        """
        addresses = {
            name: env[variable]
            for name in (field.name for field in fields(cls) if field.name.endswith("_address"))
            if env.get(variable := f"ANTHESIS_{name.upper()}")
        }
        certificates = env.get("ANTHESIS_TLS_CA")
        return cls(
            api_key=find_api_key(env, cwd or Path.cwd()),
            root_certificates=Path(certificates).read_bytes() if certificates else None,
            **addresses,
        )


def find_api_key(env: Mapping[str, str], cwd: Path) -> str:
    """ANTHESIS_API_KEY, else the admin's key in $ANTHESIS_DATA, else that of the nearest `.anthesis` above `cwd`."""
    if key := env.get("ANTHESIS_API_KEY"):
        return key
    if data := env.get("ANTHESIS_DATA"):
        candidates = [Path(data).expanduser()]
    else:
        candidates = [folder / ".anthesis" for folder in (cwd, *cwd.parents)]
    paths = [folder / "keys" / "admin.key" for folder in candidates]
    for path in paths:
        if path.is_file():
            return path.read_text().strip()
    looked = f"{paths[0]} does not exist" if len(paths) == 1 else f"there is no {paths[0]}, nor one in a folder above"
    raise UnauthenticatedError(f"no API key: ANTHESIS_API_KEY is not set and {looked}; `make up` makes an admin key")
