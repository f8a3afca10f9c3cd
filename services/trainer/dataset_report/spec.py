"""What a report is on, as the worker hands it to the process that writes it."""

from dataclasses import dataclass

from services.trainer.config import DatasetSpec
from services.trainer.spec import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSpec(Spec):
    """Kept as `run.json` in the job's folder."""

    dataset: DatasetSpec
    held_out: tuple[DatasetSpec, ...] = ()
    tokenizer_digest: str
    sequence_length: int  # tokens
