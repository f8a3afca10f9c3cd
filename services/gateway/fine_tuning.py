"""The gateway's own words for fine-tuning as OpenAI's API has it: files, jobs, and what a job reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.errors import NotFound


class NoSuchObject(NotFound):
    """A file or a job that is not there, or not the caller's. `param` and `code` are OpenAI's."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    id: str
    filename: str
    purpose: str
    digest: str
    size_bytes: int
    format: str  # TEXT or MULTITASK; UNSPECIFIED: no rows to learn from
    num_rows: int
    longest_row_bytes: int
    created_s: int  # seconds since 1970
    expires_s: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    filename: str
    digest: str
    purpose: str
    lifetime_s: int | None
    idempotency_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a job trains; the names are TrainOptions'."""

    epochs: int
    micro_batch: int
    gradient_accumulation: int
    learning_rate: float
    sequence_length: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a client asked for, in its words."""

    model: str
    training_file: str
    validation_file: str = ""
    suffix: str = ""
    learning_rate_multiplier: float
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    base: str  # a version
    output_model: str  # and the alias that is deployed
    asked: Asked
    training: Training
    idempotency_key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a job reports of one step."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_seen: int
    seconds_left: float
    time_s: float  # since 1970
    bits_per_byte: float | None  # of validation, over all its bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    sequence: int
    time_s: int
    state: str = ""  # PENDING, RUNNING, …
    step: Step | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    code: str
    message: str
    parameter: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    id: str
    created_by: str
    state: str
    cancel_requested: bool
    created_s: int
    ended_s: int | None
    asked: Asked | None  # None: not submitted by OpenAI's API
    n_epochs: int
    batch_size: int
    seed: int
    output_model: str
    version: str  # "" until it has SUCCEEDED
    error: JobError | None
    last: Step | None
    last_sequence: int  # of its events
