"""Jobs through the real parts: registry, relay, Valkey, Celery worker, DeepSpeed."""

import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from anthesis.v1 import job_pb2, registry_pb2
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

from tests.support.powercap import Powercap
from tests.support.tensorboard import shown
from tests.support.tokenizers import TEXTS
from tests.support.training import MODEL, multitask_rows, text_rows
from tests.support.training_platform import (
    TrainingPlatform,
    longest_silence_s,
    losses_by_step,
    messages,
    processes_of,
    wait_for,
)

pytestmark = pytest.mark.timeout(900)
STEPS = 120
OPTIONS = job_pb2.TrainOptions(
    steps=STEPS,
    sequence_length=32,
    micro_batch=4,
    precision="fp32",
    checkpoint_every_steps=10,
    dropout=0.1,
    layout="1x1x2",
    validate_every_steps=50,
)
HELD_OUT = [{"text": text, "language": language} for text, language in zip(TEXTS, ("en", "fr", "es"), strict=False)]


def powercap(folder: Path) -> Powercap:
    return Powercap(folder / "powercap")


@pytest.fixture(scope="module")
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    powercap(folder).zone("intel-rapl:0", "package-0")
    with TrainingPlatform(folder, ANTHESIS_POWERCAP=str(powercap(folder).root)) as platform:
        platform.dataset("texts", text_rows(200))
        platform.dataset("tasks", multitask_rows(60))
        platform.dataset("held-out", HELD_OUT)
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
        validation_datasets=["held-out"],
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
    events = platform.events(undisturbed)
    assert longest_silence_s(events) < 5
    losses = losses_by_step(events)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1]
    assert not platform.folder(undisturbed).checkpoints.exists()


def test_validation_is_reported_by_language_and_the_job_keeps_the_newest(platform, undisturbed):
    steps = {event.progress.step: event.progress for event in platform.events(undisturbed) if event.progress.step}
    assert [step for step, progress in steps.items() if progress.validation] == [50, 100, STEPS]
    found = {loss.language: loss for loss in steps[STEPS].validation}
    assert {name: loss.num_bytes for name, loss in found.items()} == {
        row["language"]: len(row["text"].encode()) for row in HELD_OUT
    }
    assert all(0 < loss.bits_per_byte < 10 for loss in found.values())
    job = platform.job(undisturbed)
    assert (job.progress.validation_step, list(job.progress.validation)) == (STEPS, list(steps[STEPS].validation))
    assert job.progress.samples_seen == STEPS * 8
    assert job.progress.model_flops_per_second == job.progress.hardware_flops_per_second > 0


def wait_for_another_checkpoint(platform: TrainingPlatform, job_id: str) -> None:
    """Until a checkpoint is finished that is not there now."""
    folder = platform.folder(job_id).checkpoints
    before = {path.name for path in folder.glob("step-????????")}
    wait_for(lambda: {path.name for path in folder.glob("step-????????")} - before, 120, "another checkpoint")


def test_a_job_goes_on_from_its_checkpoint_with_the_same_losses_when_it_is_stopped_or_its_worker_is_killed(
    platform, undisturbed
):
    job_id = pretrain(platform)

    wait_for_another_checkpoint(platform, job_id)
    platform.kill("worker", signal.SIGTERM)
    assert processes_of(job_id) == []
    assert platform.job(job_id).state == job_pb2.JOB_STATE_PENDING
    stop = platform.folder(job_id).stop
    stop.touch()
    platform.start("worker")
    asleep = f"job {job_id}: left alone while {stop} is there"
    wait_for(lambda: asleep in platform.log_path("worker").read_text(), 120, "the worker to leave the job alone")
    stop.unlink()

    wait_for_another_checkpoint(platform, job_id)
    stop.touch()
    wait_for(lambda: platform.job(job_id).state == job_pb2.JOB_STATE_PENDING, 60, "the job to be given back")
    assert processes_of(job_id) == []
    stop.unlink()

    wait_for_another_checkpoint(platform, job_id)
    platform.kill("worker")
    wait_for(lambda: processes_of(job_id) == [], 10, "the worker's processes to die with it")
    platform.start("worker")

    job = platform.wait_until_ended(job_id)
    assert (job.state, job.attempts) == (job_pb2.JOB_STATE_SUCCEEDED, 4)
    events = platform.events(job_id)
    assert sum(event.state == job_pb2.JOB_STATE_SUCCEEDED for event in events) == 1
    said = messages(events)
    told = next(found for text in said if (found := re.search(r"was told to stop: checkpoint of step (\d+)$", text)))
    assert any(f"attempt 2 resumed from step {told[1]}," in message for message in said)
    stopped = next(found for text in said if (found := re.search(r"to go on: checkpoint of step (\d+)$", text)))
    assert any(f"attempt 3 resumed from step {stopped[1]}," in message for message in said)
    assert any("expired" in message for message in said)
    assert any(message.startswith("attempt 4 resumed from step ") for message in said)
    assert losses_by_step(events) == losses_by_step(platform.events(undisturbed))
    shown_losses = shown(platform.folder(job_id).tensorboard)["loss"]
    assert shown_losses == list(losses_by_step(events).items())  # three attempts, each step once


def test_a_paused_job_and_one_that_begins_with_its_checkpoint_compute_what_an_undisturbed_one_does(
    platform, undisturbed
):
    job_id = pretrain(platform, "paused-model")
    wait_for_another_checkpoint(platform, job_id)
    assert platform.jobs.PauseJob(job_pb2.PauseJobRequest(id=job_id)).job.pause_requested
    wait_for(lambda: platform.job(job_id).state == job_pb2.JOB_STATE_PAUSED, 60, "the job to be paused")
    assert processes_of(job_id) == []

    other = pretrain(platform, "while-it-waits", steps=2)  # the worker is free
    assert platform.wait_until_ended(other).state == job_pb2.JOB_STATE_SUCCEEDED
    assert platform.job(job_id).attempts == 1

    branch = job_pb2.PretrainSpec()
    branch.CopyFrom(platform.job(job_id).pretrain)
    branch.output_model = "branch-model"
    branch.from_checkpoint.job_id = job_id
    branch = platform.submit(branch)
    assert platform.wait_until_ended(branch).state == job_pb2.JOB_STATE_SUCCEEDED
    assert 0 < len(losses_by_step(platform.events(branch))) < STEPS

    platform.jobs.ResumeJob(job_pb2.ResumeJobRequest(id=job_id))
    job = platform.wait_until_ended(job_id)
    assert (job.state, job.attempts) == (job_pb2.JOB_STATE_SUCCEEDED, 2)
    events = platform.events(job_id)
    said = messages(events)
    paused = next(found for text in said if (found := re.search(r"is to be paused: checkpoint of step (\d+)$", text)))
    assert any(f"attempt 2 resumed from step {paused[1]}," in message for message in said)
    assert losses_by_step(events) == losses_by_step(platform.events(undisturbed))
    assert losses_by_step(platform.events(branch)).items() <= losses_by_step(events).items()
    made = [weights_of(platform, found) for found in (undisturbed, job_id, branch)]
    assert made[0]
    assert made[0] == made[1] == made[2]


def weights_of(platform: TrainingPlatform, job_id: str) -> dict[str, str]:
    return {path: digest for path, digest in platform.files(job_id).items() if path.endswith(".safetensors")}


def test_what_a_jobs_processes_printed_can_be_read_at_the_registry(platform, undisturbed):
    page = platform.jobs.ReadJobLogs(job_pb2.ReadJobLogsRequest(id=undisturbed))
    assert page.job_ended
    printed = platform.folder(undisturbed).log.read_text(errors="replace").split("\n")
    assert page.lines
    assert list(page.lines) == printed[: len(page.lines)]


def test_the_energy_of_all_attempts_is_with_the_job_also_of_one_whose_worker_was_killed(platform):
    """The counter stands still but for what the test adds."""
    counters = powercap(platform.settings.data_dir)
    zone = counters.root / "intel-rapl:0"
    job_id = pretrain(platform, "measured-model", steps=400)
    platform.wait_for_step(job_id, 1)
    counters.use(zone, 5.0)
    wait_for(lambda: platform.job(job_id).energy.package_joules == 5.0, 30, "the energy to be reported")
    platform.kill("worker")
    killed = time.time()
    counters.use(zone, 1000.0)  # nobody's
    platform.start("worker")
    platform.wait_for_step(job_id, 1, since=killed)
    counters.use(zone, 7.0)
    job = platform.wait_until_ended(job_id)
    assert (job.state, job.attempts) == (job_pb2.JOB_STATE_SUCCEEDED, 2)
    assert (job.energy.package_joules, job.energy.attempts) == (12.0, 2)
    assert not job.energy.HasField("dram_joules")
    card = platform.registry.GetModelCard(registry_pb2.GetModelCardRequest(name=job.model_version)).card
    assert f"Measured: {12 / 3.6e6:.3g} kWh" in card.markdown


def test_a_free_worker_takes_the_urgent_job_first(platform):
    """The worker is away while they are submitted, so all their messages wait when it comes back."""
    platform.kill("worker", signal.SIGTERM)
    ids = {name: pretrain(platform, f"{name}-model", steps=2) for name in ("first", "second")}
    spec = platform.job(ids["second"]).pretrain
    urgent = job_pb2.CreateJobRequest(pretrain=spec, priority=job_pb2.JOB_PRIORITY_HIGH)
    ids["urgent"] = platform.jobs.CreateJob(urgent).job.id
    platform.start("worker")
    started = {name: platform.wait_until_ended(job_id).start_time.ToNanoseconds() for name, job_id in ids.items()}
    assert sorted(started, key=started.__getitem__) == ["urgent", "first", "second"]


def test_a_worker_with_a_time_limit_ends_itself(platform):
    platform.kill("worker", signal.SIGTERM)
    platform.start("worker", ANTHESIS_TIME_LIMIT="1")
    assert platform.wait("worker", 120) == 0
    platform.start("worker")


def test_a_job_whose_rank_hangs_says_where_and_goes_on_from_its_checkpoint(platform, undisturbed):
    job_id = pretrain(platform, "hung-model")
    wait_for_another_checkpoint(platform, job_id)
    os.kill(platform.ranks(job_id)[-1], signal.SIGSTOP)
    job = platform.wait_until_ended(job_id)
    assert (job.state, job.attempts) == (job_pb2.JOB_STATE_SUCCEEDED, 2)
    events = platform.events(job_id)
    said = next(message for message in messages(events) if message.startswith("no step for "))
    assert "the ranks are stopped" in said
    assert re.search(r"rank 1 on .*, process \d+, stopped:\n.*Thread", said, re.DOTALL)
    assert re.search(r"rank 0 on .*, process \d+, (waiting|running):\n.*train\.py", said, re.DOTALL)
    assert losses_by_step(events) == losses_by_step(platform.events(undisturbed))


def test_cancelling_ends_the_processes(platform):
    job_id = pretrain(platform, "cancelled-model", steps=100_000)
    platform.wait_for_step(job_id, 1)
    platform.jobs.CancelJob(job_pb2.CancelJobRequest(id=job_id))
    assert platform.wait_until_ended(job_id, 30).state == job_pb2.JOB_STATE_CANCELLED
    assert processes_of(job_id) == []


MIXTURE = b"""
tasks:
  capitals: {templates: [{jinja: "{{city}} ||| {{land}}"}, {jinja: "Land of {{city}}: ||| {{land}}"}]}
  tasks: {max_examples: 20}
"""


def test_a_tuned_version_continues_its_base_with_lora_on_a_mixture_of_tasks(platform, undisturbed):
    platform.dataset("capitals", [{"city": f"C{i}", "land": f"L{i}"} for i in range(20)])
    platform.create_dataset("mixed", "MIXTURE", MIXTURE)
    spec = job_pb2.FineTuneSpec(
        output_model="seedling-z",
        base="seedling@1",
        datasets=["mixed"],
        options=job_pb2.TrainOptions(
            epochs=2,
            sequence_length=64,
            micro_batch=2,
            precision="bf16",
            learning_rate=1e-2,
            normalize_targets=True,
        ),
        lora=job_pb2.LoraOptions(rank=4, alpha=8),
    )
    job = platform.wait_until_ended(platform.submit(spec))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    version = version_of(platform, job.model_version)
    assert version.parent == "seedling@1"
    assert version.datasets == ["mixed@1", "capitals@1", "tasks@1"]


def test_a_dataset_is_reported_on_before_anything_is_trained_on_it(platform):
    """By the worker that trains, under the same lease."""
    platform.dataset("doubtful", [*HELD_OUT, HELD_OUT[0], {"text": " "}])
    spec = job_pb2.ValidateDatasetSpec(
        dataset="doubtful", tokenizer_digest=platform.tokenizer_digest, sequence_length=32, held_out=["held-out"]
    )
    job = platform.wait_until_ended(platform.submit(spec))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    dataset = platform.registry.GetDataset(registry_pb2.GetDatasetRequest(name="doubtful")).dataset
    report = json.loads(platform.store.read_bytes(dataset.report_digest))
    assert (report["dataset"], report["rows"], report["bad"]["rows"]) == ("doubtful@1", 5, 1)
    assert report["duplicates"]["exact"]["first"] == [{"row": 4, "like_row": 1}]
    assert report["leakage"]["held_out"][0]["rows"] == 4
    assert not processes_of(job.id)


def test_a_tokenizer_is_trained_and_a_model_on_it(platform):
    platform.dataset("words", text_rows(40))
    spec = job_pb2.TrainTokenizerSpec(datasets=["words"], vocab_size=600)
    job = platform.wait_until_ended(platform.submit(spec))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    tokenizer = Tokenizer.from_str(platform.store.read_bytes(job.tokenizer_digest).decode())
    text = text_rows(40)[7]["text"]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert (job.model_version, processes_of(job.id)) == ("", [])
    pretrain = job_pb2.PretrainSpec(
        output_model="of-words",
        tokenizer_digest=job.tokenizer_digest,
        datasets=["words"],
        config=json.dumps(MODEL | {"vocab_size": 0}),
        options=job_pb2.TrainOptions(steps=1, sequence_length=32, micro_batch=2, precision="fp32"),
    )
    pretrained = platform.wait_until_ended(platform.submit(pretrain))
    assert pretrained.state == job_pb2.JOB_STATE_SUCCEEDED, pretrained.error


def test_text_is_cleaned_into_a_dataset(platform):
    rows = [{"text": f"{row['text']} {number}."} for number, row in enumerate(HELD_OUT)]
    platform.dataset("raw", [*rows, rows[0], {"text": "a b"}])
    spec = job_pb2.CleanCorpusSpec(datasets=["raw"], output_dataset="fit", keep_near_duplicates=True)
    job = platform.wait_until_ended(platform.submit(spec))
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    dataset = platform.registry.GetDataset(registry_pb2.GetDatasetRequest(name="fit")).dataset
    languages = json.loads(platform.store.read_bytes(job.report_digest))["languages"].values()
    assert sum(found["documents"] for found in languages) == len(rows) + 2
    kept = sum(found["kept"]["documents"] for found in languages)
    assert (job.dataset, dataset.num_rows) == ("fit@1", kept)
    assert 0 < kept <= len(rows)
    wait_for(lambda: not platform.folder(job.id).cleaning.exists(), 60, "the worker to clear up")
    assert not processes_of(job.id)


def test_a_report_that_cannot_be_made_says_why(platform):
    platform.dataset("texts-again", text_rows(3))
    no_tokenizer = b'{"model": {"type": "BPE", "vocab": {"a": 0}}}'  # enough of one for the registry
    spec = job_pb2.ValidateDatasetSpec(dataset="texts-again", tokenizer_digest=platform.store.write_bytes(no_tokenizer))
    job = platform.wait_until_ended(platform.submit(spec))
    assert (job.state, job.error.code) == (job_pb2.JOB_STATE_FAILED, "BAD_TOKENIZER")
