"""What is to be measured: a version, by a suite's texts, as the worker hands it to the process that it starts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from services.trainer.config import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec:
    """Kept as `evaluation.json` in the job's folder."""

    job_id: str
    fencing_token: int
    suite: str  # its name
    datasets: tuple[DatasetSpec, ...]
    sequence_length: int  # tokens that a text is cut into
    tokenizer_digest: str
    files: tuple[tuple[str, str], ...] = ()  # (path, digest) of the version; none: what the job has trained
    data_dir: str
    artifacts_url: str

    @property
    def follows_training(self) -> bool:
        return not self.files

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "EvaluationSpec":
        fields = json.loads(path.read_text())
        fields["datasets"] = tuple(DatasetSpec(**dataset) for dataset in fields["datasets"])
        fields["files"] = tuple((name, digest) for name, digest in fields["files"])
        return cls(**fields)
