"""What is to be asked of a version, as the worker hands it to the process that it starts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from services.trainer.config import DatasetSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    name: str
    language: str  # of all questions; "": what rows, or the task's name, say
    dataset: DatasetSpec | None  # None: a task of the harness
    jinja: str
    answer_choices: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessSpec:
    """Kept as `evaluation.json` in the job's folder."""

    job_id: str
    fencing_token: int
    project: str  # whose job it is; "": the platform's
    suite: str  # its name
    version: str  # "<model>@<number>"
    tasks: tuple[HarnessTask, ...]
    metrics: tuple[str, ...]  # that are kept
    num_fewshot: int  # answered examples before a question; 0: as the task has it
    limit: int  # questions of a task; 0: all
    tokenizer_digest: str
    gateway_url: str
    data_dir: str
    artifacts_url: str
    follows_training: bool = False

    @property
    def needs_hub(self) -> bool:
        """Whether a task's data come from there."""
        return any(task.dataset is None for task in self.tasks)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "HarnessSpec":
        fields = json.loads(path.read_text())
        for task in fields["tasks"]:
            task["dataset"] = task["dataset"] and DatasetSpec(**task["dataset"])
        fields["tasks"] = tuple(HarnessTask(**task) for task in fields["tasks"])
        fields["metrics"] = tuple(fields["metrics"])
        return cls(**fields)
