"""What the processes of an attempt are told: a JSON file in the job's folder, which the worker writes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import msgspec

from services.common.artifacts import ArtifactStore


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    job_id: str
    fencing_token: int
    data_dir: str
    artifacts_url: str

    def store(self) -> ArtifactStore:
        return ArtifactStore(self.artifacts_url, Path(self.data_dir) / "cache" / "artifacts")

    def save(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(asdict(self)), indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises msgspec.ValidationError for what was not saved by this class."""
        return msgspec.json.decode(path.read_bytes(), type=cls)
