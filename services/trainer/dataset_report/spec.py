"""What a report is on, as the worker hands it to the process that writes it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from services.trainer.config import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSpec:
    """Kept as `run.json` in the job's folder."""

    job_id: str
    fencing_token: int
    dataset: DatasetSpec
    held_out: tuple[DatasetSpec, ...] = ()
    tokenizer_digest: str
    sequence_length: int  # tokens
    data_dir: str
    artifacts_url: str

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "ReportSpec":
        fields = json.loads(path.read_text())
        fields["dataset"] = DatasetSpec(**fields["dataset"])
        fields["held_out"] = tuple(DatasetSpec(**dataset) for dataset in fields["held_out"])
        return cls(**fields)
