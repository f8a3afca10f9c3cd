"""The JSON of OpenAI's fine-tuning jobs, their events and checkpoints. Source: OpenAI's API reference, Fine-tuning."""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.gateway.fine_tuning import Event, Job, Step
from services.gateway.fine_tuning_service import NewFineTuning
from services.gateway.generation import InvalidParameter
from services.gateway.hyperparameters import Hyperparameters
from services.gateway.openai_completions import Json, Text

SUFFIX = re.compile(r"[a-z0-9._-]{1,64}")
EVENT_ID = re.compile(r"ftevent-(job-[0-9a-f-]{1,60})-([0-9]{1,10})")
STATUSES = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
}
_SAID = {
    "PENDING": "The job is queued",
    "RUNNING": "The job has started",
    "SUCCEEDED": "The job has succeeded",
    "CANCELLED": "The job was cancelled",
}
_RANGES = {"n_epochs": (1, 50), "batch_size": (1, 256), "learning_rate_multiplier": (1e-6, 1000.0)}


class HyperparametersBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    n_epochs: Literal["auto"] | int | None = None
    batch_size: Literal["auto"] | int | None = None
    learning_rate_multiplier: Literal["auto"] | float | None = None

    def chosen(self) -> Hyperparameters:
        """Raises InvalidParameter."""
        given = {name: value for name in _RANGES if (value := getattr(self, name)) not in (None, "auto")}
        for name, value in given.items():
            least, most = _RANGES[name]
            if not least <= value <= most:
                message = f"{name}={value} is out of range; choose 'auto', or {least} to {most}"
                raise InvalidParameter(f"hyperparameters.{name}", message)
        return Hyperparameters(**given)


class SupervisedBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    hyperparameters: HyperparametersBody | None = None


class MethodBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: str
    supervised: SupervisedBody | None = None
    dpo: Any = None
    reinforcement: Any = None


class JobBody(BaseModel):
    """Body of POST /v1/fine_tuning/jobs; None is what is left out."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: Text
    training_file: Text
    validation_file: Text | None = None
    suffix: Text | None = None
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    method: MethodBody | None = None
    hyperparameters: HyperparametersBody | None = None
    integrations: list[Any] | None = None
    metadata: (
        Annotated[
            dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None

    def to_new(self, idempotency_key: str) -> NewFineTuning:
        """Raises InvalidParameter for what is out of range, contradicts itself or is not offered here."""
        if self.integrations:
            message = "integrations are not supported; trackers are set up with the trainer (docs/training.md)"
            raise InvalidParameter("integrations", message)
        return NewFineTuning(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file or "",
            suffix=self._suffix(),
            hyperparameters=self._hyperparameters(),
            seed=self.seed,
            metadata=self.metadata or {},
            idempotency_key=idempotency_key,
        )

    def _suffix(self) -> str:
        suffix = (self.suffix or "").lower()
        if suffix and not SUFFIX.fullmatch(suffix):
            message = f"suffix={suffix[:80]!r} is not allowed; use at most 64 of a-z, 0-9, '.', '_', '-'"
            raise InvalidParameter("suffix", message)
        return suffix

    def _hyperparameters(self) -> Hyperparameters:
        method = self.method or MethodBody(type="supervised")
        for kind in ("dpo", "reinforcement"):
            if method.type == kind or getattr(method, kind) is not None:
                raise InvalidParameter("method", f"method {kind!r} is not supported; use 'supervised'")
        if method.type != "supervised":
            raise InvalidParameter("method", f"method.type={method.type[:40]!r} is not known; use 'supervised'")
        of_method = method.supervised.hyperparameters if method.supervised else None
        if of_method and self.hyperparameters:
            message = "hyperparameters stand beside those of method.supervised; give them once, in method"
            raise InvalidParameter("hyperparameters", message)
        return (of_method or self.hyperparameters or HyperparametersBody()).chosen()


def job_json(job: Job) -> Json:
    asked = job.asked
    assert asked is not None
    hyperparameters = {
        "n_epochs": job.n_epochs,
        "batch_size": job.batch_size,
        "learning_rate_multiplier": asked.learning_rate_multiplier,
    }
    succeeded = job.state == "SUCCEEDED"
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_s,
        "error": _error_json(job),
        "estimated_finish": _estimated_finish(job),
        "fine_tuned_model": job.output_model if succeeded else None,
        "finished_at": job.ended_s,
        "hyperparameters": hyperparameters,
        "integrations": [],
        "metadata": dict(asked.metadata) or None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "model": asked.model,
        "organization_id": "anthesis",
        "result_files": [f"file-{job.id.removeprefix('job-')}"] if succeeded else [],
        "seed": job.seed,
        "status": STATUSES.get(job.state, "queued"),  # of a newer contract: it waits, whatever for
        "trained_tokens": job.last.tokens_seen if succeeded and job.last else None,
        "training_file": asked.training_file,
        "validation_file": asked.validation_file or None,
    }


def _error_json(job: Job) -> Json | None:
    if job.error is None:
        return None
    return {"code": job.error.code, "message": job.error.message, "param": job.error.parameter or None}


def _estimated_finish(job: Job) -> int | None:
    if job.state != "RUNNING" or job.last is None or not math.isfinite(job.last.seconds_left):
        return None
    return round(job.last.time_s + job.last.seconds_left)


def event_json(job: Job, event: Event) -> Json:
    level, message = _said(job, event)
    return {
        "id": f"ftevent-{job.id}-{event.sequence}",
        "object": "fine_tuning.job.event",
        "created_at": event.time_s,
        "level": level,
        "message": message,
        "type": "metrics" if event.step else "message",
        "data": _metrics(event.step) if event.step else None,
    }


def _said(job: Job, event: Event) -> tuple[str, str]:
    """Level and message."""
    if event.step:
        step = event.step
        validated = f", validation {step.bits_per_byte:.4f} bits per byte" if step.bits_per_byte is not None else ""
        return "info", f"Step {step.step}/{step.total_steps}: training loss={step.loss:.4f}{validated}"
    if event.state == "FAILED":
        return "error", f"The job has failed: {job.error.message if job.error else 'no reason given'}"
    if event.state == "PENDING" and event.sequence > 1:
        return "warn", "The job waits again: its worker stopped or fell silent"
    return "info", _SAID.get(event.state, f"The job is {event.state.lower()}") if event.state else event.message


def _metrics(step: Step) -> Json:
    return {
        "step": step.step,
        "total_steps": step.total_steps,
        "train_loss": _number(step.loss),
        "learning_rate": _number(step.learning_rate),
        "grad_norm": _number(step.grad_norm),
        "tokens_seen": step.tokens_seen,
        "valid_bits_per_byte": _number(step.bits_per_byte),
    }


def _number(value: float | None) -> float | None:
    """JSON has no infinity and nothing that is no number."""
    return value if value is not None and math.isfinite(value) else None


def event_cursor(job_id: str, after: str | None) -> int | None:
    """The sequence of the event called `after`. Raises InvalidParameter for what is no event of the job's."""
    if after is None:
        return None
    found = EVENT_ID.fullmatch(after)
    if not found or found[1] != job_id:
        raise InvalidParameter("after", f"after={after[:100]!r} is no event of {job_id[:100]!r}; send an event's id")
    return int(found[2])


def checkpoints_json(job: Job) -> list[Json]:
    """The weights that the job has made; what it wrote on the way can be trained on from, not served."""
    if not job.version or not job.last or job.ended_s is None:
        return []
    return [
        {
            "id": f"ftckpt-{job.id}-{job.last.step}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": job.ended_s,
            "fine_tuned_model_checkpoint": job.version,
            "fine_tuning_job_id": job.id,
            "metrics": {"step": job.last.step, "train_loss": _number(job.last.loss)},
            "step_number": job.last.step,
        }
    ]
