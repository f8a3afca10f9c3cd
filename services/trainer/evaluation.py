"""What is to be measured: a version, by a suite's texts, as the worker hands it to the process that it starts."""

from dataclasses import dataclass

from services.trainer.config import DatasetSpec
from services.trainer.spec import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSpec(Spec):
    """Kept as `evaluation.json` in the job's folder."""

    suite: str  # its name
    datasets: tuple[DatasetSpec, ...]
    sequence_length: int  # tokens that a text is cut into
    tokenizer_digest: str
    files: tuple[tuple[str, str], ...] = ()  # (path, digest) of the version; none: what the job has trained

    @property
    def follows_training(self) -> bool:
        return not self.files
