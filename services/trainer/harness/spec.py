"""What is to be asked of a version, as the worker hands it to the process that it starts."""

from dataclasses import dataclass

from services.trainer.config import DatasetSpec
from services.trainer.spec import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    name: str
    language: str  # of all questions; "": what rows, or the task's name, say
    dataset: DatasetSpec | None  # None: a task of the harness
    jinja: str
    answer_choices: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessSpec(Spec):
    """Kept as `evaluation.json` in the job's folder."""

    project: str  # whose job it is; "": the platform's
    suite: str  # its name
    version: str  # "<model>@<number>"
    tasks: tuple[HarnessTask, ...]
    metrics: tuple[str, ...]  # that are kept
    num_fewshot: int  # answered examples before a question; 0: as the task has it
    limit: int  # questions of a task; 0: all
    tokenizer_digest: str
    gateway_url: str
    follows_training: bool = False

    @property
    def needs_hub(self) -> bool:
        """Whether a task's data come from there."""
        return any(task.dataset is None for task in self.tasks)
