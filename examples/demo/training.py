"""From rows to a model that answers: datasets, tokenizer, jobs, deployments.

Each step finds what an earlier run of the demo made.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from anthesis.client import Client
from anthesis.errors import NotFoundError
from anthesis.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_SUCCEEDED,
    FineTuneSpec,
    Job,
    PretrainSpec,
    TrainingProgress,
)
from anthesis.v1.registry_pb2 import Dataset, DatasetFormat, ModelVersion

OnProgress = Callable[[TrainingProgress], None]
MAX_RETRIES = 20


class JobNotDone(Exception):
    """A training job failed or was cancelled."""


def upload(
    client: Client, folder: Path, name: str, kind: "DatasetFormat.ValueType", rows: Iterable[dict[str, Any]]
) -> Dataset:
    """The dataset of these rows; its name ends in a hash of them."""
    data = b"".join(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n" for row in rows)
    full_name = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    try:
        return client.datasets.get(full_name)
    except NotFoundError:
        path = folder / f"{full_name}.jsonl"
        path.write_bytes(data)
        return client.datasets.upload(full_name, path, kind)


def train_tokenizer(client: Client, datasets: Iterable[Dataset], vocab_size: int) -> str:
    """Digest of a tokenizer of exactly `vocab_size` tokens: the same text gives the same one."""
    answer = client.tokenizers.train([dataset.digest for dataset in datasets], vocab_size)
    if answer.vocab_size != vocab_size:
        raise ValueError(f"the text gives {answer.vocab_size} tokens, not {vocab_size}; ask for fewer")
    return answer.tokenizer_digest


def run_job(client: Client, spec: PretrainSpec | FineTuneSpec, alias: str, on_progress: OnProgress) -> ModelVersion:
    """The version that this job makes, or has made, answering to `alias`. Raises JobNotDone."""
    job = _submit(client, spec, alias)
    for event in client.jobs.watch(job.id):
        if event.HasField("progress"):
            on_progress(event.progress)
    job = client.jobs.get(job.id)
    if job.state != JOB_STATE_SUCCEEDED:
        raise JobNotDone(
            f"job {job.id} for {alias!r} did not succeed: {job.error.code or 'cancelled'} {job.error.message}"
        )
    return _answering(client, job.model_version, alias)


def _submit(client: Client, spec: PretrainSpec | FineTuneSpec, alias: str) -> Job:
    """The job of this very spec; a new one where an earlier failed or was cancelled."""
    key = hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()[:16]
    for attempt in range(MAX_RETRIES):
        job = client.jobs.create(spec, deploy_alias=alias, idempotency_key=f"demo-{alias}-{key}-{attempt}")
        if job.state not in (JOB_STATE_FAILED, JOB_STATE_CANCELLED):
            return job
    raise JobNotDone(f"{MAX_RETRIES} jobs for {alias!r} failed or were cancelled; see `anthesis jobs list`")


def _answering(client: Client, version: str, alias: str) -> ModelVersion:
    """The version, once it is the alias's and a worker has it."""
    if client.models.get_version(alias).name != version:
        client.aliases.set(alias, version)
    client.deployments.create(alias)
    client.deployments.wait(alias)
    return client.models.get_version(version)
