"""How much each principal may have under way in uploads, and for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.common.errors import ResourceExhausted


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadLimits:
    """Of a principal's uploads that have not ended."""

    max_uploads: int = 64
    max_bytes: int = 1 << 40  # as stated
    expiry_s: float = 86_400.0  # since its last byte

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "UploadLimits":
        return cls(
            max_uploads=int(env.get("ANTHESIS_MAX_UPLOADS") or 64),
            max_bytes=int(env.get("ANTHESIS_MAX_UPLOAD_BYTES") or 1 << 40),
            expiry_s=float(env.get("ANTHESIS_UPLOAD_EXPIRY_SECONDS") or 86_400),
        )

    def check(self, principal: str, unfinished: Sequence[int], size_bytes: int) -> None:
        """Raise ResourceExhausted unless one of `size_bytes` may come beside `unfinished`, the sizes of the others."""
        if len(unfinished) < self.max_uploads and sum(unfinished) + size_bytes <= self.max_bytes:
            return
        raise ResourceExhausted(
            f"{principal!r} has {len(unfinished)} unfinished uploads of {sum(unfinished)} bytes and asks for "
            f"{size_bytes} more; {self.max_uploads} and {self.max_bytes} are allowed: finish or abandon one, or wait "
            f"until they expire, {self.expiry_s:.0f} s after their last byte"
        )


DEFAULT_LIMITS = UploadLimits()
