"""Another job's checkpoint is taken whole into the job's own folder, or the job says what is there instead."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from services.trainer.brought import bring_checkpoint
from services.trainer.config import RunSpec
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from tests.support.training import BASE


def write_checkpoint(folder: JobFolder, step: int, content: bytes = b"weights") -> Path:
    path = folder.checkpoints / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors").write_bytes(content)
    files = {"rank-00000.safetensors": hashlib.sha256(b"weights").hexdigest()}
    (path / "manifest.json").write_text(json.dumps({"step": step, "files": files}))
    return path


@pytest.fixture
def other(tmp_path: Path) -> JobFolder:
    """Another job's, with checkpoints of three steps; the newest has been damaged."""
    folder = JobFolder(tmp_path / "jobs" / "job-other")
    write_checkpoint(folder, 10)
    write_checkpoint(folder, 20)
    write_checkpoint(folder, 30, content=b"weighty")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path / "jobs" / "job-own")
    folder.path.mkdir(parents=True)
    return folder


def spec_from(job_id: str, step: int = 0) -> RunSpec:
    return RunSpec(
        job_id="job-own",
        attempt=1,
        fencing_token=1,
        config=BASE,
        datasets=(),
        tokenizer_digest="",
        data_dir="",
        artifacts_url="",
        from_job=job_id,
        from_step=step,
    )


def step_in(folder: Path) -> int:
    return json.loads((folder / "manifest.json").read_text())["step"]


def test_the_newest_whole_checkpoint_is_taken_and_stays_whatever_becomes_of_the_other_job(other, own):
    bring_checkpoint(spec_from("job-other"), own, 100)
    assert step_in(own.brought) == 20
    shutil.rmtree(other.path)
    bring_checkpoint(spec_from("job-other"), own, 100)  # the next attempt
    assert (own.brought / "rank-00000.safetensors").read_bytes() == b"weights"


def test_that_of_a_step_is_taken_if_it_is_named(other, own):
    bring_checkpoint(spec_from("job-other", 10), own, 100)
    assert step_in(own.brought) == 10


@pytest.mark.parametrize(
    ("job_id", "step", "why"),
    [
        ("job-other", 30, "no whole checkpoint of step 30 here (steps: 30, 20, 10)"),
        ("job-other", 15, "no whole checkpoint of step 15 here (steps: 30, 20, 10)"),
        ("job-nobody", 0, "job-nobody has no whole checkpoint here (steps: none)"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(other, own, job_id, step, why):
    with pytest.raises(JobFailure) as failure:
        bring_checkpoint(spec_from(job_id, step), own, 100)
    assert (failure.value.code, failure.value.parameter) == ("NO_CHECKPOINT", "from_checkpoint")
    assert why in failure.value.message
    assert list(own.path.iterdir()) == []


def test_a_checkpoint_behind_the_end_of_the_run_is_refused(other, own):
    with pytest.raises(JobFailure, match="the run has 20 steps, and 20 are done") as failure:
        bring_checkpoint(spec_from("job-other", 20), own, 20)
    assert (failure.value.code, failure.value.parameter) == ("BAD_STEPS", "steps")


def test_a_job_that_begins_by_itself_brings_nothing(other, own):
    bring_checkpoint(spec_from(""), own, 100)
    assert not own.brought.exists()
