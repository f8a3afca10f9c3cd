"""Jobs through the real parts: registry, relay, Valkey, Celery worker, DeepSpeed."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from anthesis.v1 import job_pb2, registry_pb2
from transformers import BloomForCausalLM

from services.trainer.folder import JobFolder
from tests.support.training import MODEL, multitask_rows, text_rows
from tests.support.training_platform import TrainingPlatform, losses_by_step, messages, processes_of, wait_for

OPTIONS = job_pb2.TrainOptions(
    steps=30,
    sequence_length=32,
    micro_batch=4,
    precision="fp32",
    checkpoint_every_steps=10,
    dropout=0.1,
    layout="1x1x2",
)


@pytest.fixture(scope="module")
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with TrainingPlatform(folder) as platform:
        platform.dataset("texts", text_rows(200))
        platform.dataset("tasks", multitask_rows(60))
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


def pretrain(platform: TrainingPlatform, model: str = "seedling", **options: object) -> str:
    merged = job_pb2.TrainOptions()
    merged.CopyFrom(OPTIONS)
    merged.MergeFrom(job_pb2.TrainOptions(**options))
    spec = job_pb2.PretrainSpec(
        output_model=model,
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=merged,
    )
    return platform.submit(spec)


@pytest.fixture(scope="module")
def undisturbed(platform: TrainingPlatform) -> str:
    """A job that nothing happened to."""
    job_id = pretrain(platform)
    assert platform.wait_until_ended(job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    return job_id


def version_of(platform: TrainingPlatform, name: str) -> registry_pb2.ModelVersion:
    return platform.registry.GetModelVersion(registry_pb2.GetModelVersionRequest(name=name)).version


def folder_of(platform: TrainingPlatform, job_id: str) -> JobFolder:
    return JobFolder(platform.settings.data_dir / "jobs" / job_id)


def test_a_pretrained_version_is_registered_and_loads_in_transformers(platform, undisturbed, tmp_path):
    version = platform.job(undisturbed).model_version
    assert version == "seedling@1"
    files = version_of(platform, version).files
    folder = platform.store.materialize([(file.path, file.digest) for file in files], tmp_path / "model")
    model, info = BloomForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    assert model.config.vocab_size == 512  # the tokenizer's, rounded up to 128
    assert model.config.hidden_dropout == 0.0


def test_every_step_is_reported_and_checkpoints_are_removed(platform, undisturbed):
    losses = losses_by_step(platform.events(undisturbed))
    assert list(losses) == list(range(1, 31))
    assert losses[30] < losses[1]
    assert not folder_of(platform, undisturbed).checkpoints.exists()


def test_a_killed_rank_resumes_from_the_checkpoint_with_the_same_losses(platform, undisturbed):
    job_id = pretrain(platform)
    wait_for(lambda: any(folder_of(platform, job_id).checkpoints.glob("step-*0")), 90, "a checkpoint")
    os.kill(platform.ranks(job_id)[0], signal.SIGKILL)
    assert platform.wait_until_ended(job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    events = platform.events(job_id)
    assert any("RANK_DIED" in message and "signal 9" in message for message in messages(events)), messages(events)
    assert any(message.startswith("attempt 2 resumed from step ") for message in messages(events))
    assert losses_by_step(events) == losses_by_step(platform.events(undisturbed))


def test_cancelling_ends_the_processes(platform):
    job_id = pretrain(platform, "cancelled-model", steps=100_000)
    platform.wait_for_step(job_id, 1)
    platform.jobs.CancelJob(job_pb2.CancelJobRequest(id=job_id))
    assert platform.wait_until_ended(job_id, 30).state == job_pb2.JOB_STATE_CANCELLED
    assert processes_of(job_id) == []


def test_a_worker_told_to_stop_gives_its_job_back_and_the_next_one_goes_on(platform, undisturbed):
    job_id = pretrain(platform)
    wait_for(lambda: any(folder_of(platform, job_id).checkpoints.glob("step-*0")), 90, "a checkpoint")
    platform.kill("worker", signal.SIGTERM)
    assert processes_of(job_id) == []
    job = platform.job(job_id)
    assert job.state in (job_pb2.JOB_STATE_PENDING, job_pb2.JOB_STATE_SUCCEEDED)
    platform.start("worker")
    assert platform.wait_until_ended(job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert losses_by_step(platform.events(job_id)) == losses_by_step(platform.events(undisturbed))


def test_a_killed_worker_takes_all_its_processes_along(platform, undisturbed):
    """And its job goes on once the lease has run out."""
    job_id = pretrain(platform)
    wait_for(lambda: any(folder_of(platform, job_id).checkpoints.glob("step-*0")), 90, "a checkpoint")
    platform.kill("worker")
    wait_for(lambda: processes_of(job_id) == [], 5, "the processes to end")
    platform.start("worker")
    assert platform.wait_until_ended(job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    assert losses_by_step(platform.events(job_id)) == losses_by_step(platform.events(undisturbed))


def test_a_tuned_version_continues_its_base_with_lora(platform, undisturbed):
    spec = job_pb2.FineTuneSpec(
        output_model="seedling-z",
        base="seedling@1",
        datasets=["tasks"],
        options=job_pb2.TrainOptions(epochs=2, sequence_length=64, micro_batch=2, precision="bf16", learning_rate=1e-2),
        lora=job_pb2.LoraOptions(rank=4, alpha=8),
    )
    job = platform.wait_until_ended(platform.submit(spec))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    assert version_of(platform, job.model_version).parent == "seedling@1"
