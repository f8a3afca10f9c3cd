"""Real ranks that go back past samples which give no number; and what they make of checkpoints that are not theirs."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2

from services.trainer.config import RunSpec
from services.trainer.early_end import EarlyEnd
from services.trainer.folder import JobFolder
from services.trainer.progress import ProgressReader
from services.trainer.retention import finished, step_of
from services.trainer.saved_state import MANIFEST
from services.trainer.skips import Skips
from tests.support.training import BASE, MODEL, job_folder, losses, make_run, run_stages, text_rows
from tests.support.training_platform import TrainingPlatform, messages, reports

STEPS, BATCH = 10, 8
CONFIG = dataclasses.replace(
    BASE,
    steps=STEPS,
    micro_batch=BATCH,
    checkpoint_every_steps=2,
    keep_every_steps=4,
    rollback_on="nan",
    dropout=0.1,
)


def said(folder: JobFolder) -> list[str]:
    return ProgressReader(folder.progress).read()[1]


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """A run whose sample 41, in the sixth step, is bad: twice started, as the worker would."""
    spec = make_run(tmp_path_factory.mktemp("bad"), CONFIG)
    folder = run_stages(spec, mistake="bad_samples")
    end = EarlyEnd.take(folder.early_end(spec.fencing_token))
    assert end is not None
    assert end.again
    run_stages(spec, mistake="bad_samples")
    return spec


def test_a_run_goes_back_past_bad_samples_and_ends_as_one_that_never_saw_them(gone_back, tmp_path):
    folder = job_folder(gone_back)
    event = next(text for text in said(folder) if text.startswith("step 6: loss nan, gradient norm"))
    assert "samples 40 to 47: windows" in event
    assert "attempt 1 resumed from step 4, layout 1x1x1" in said(folder)
    skips = Skips.load(folder.skips)
    assert [(skip.first, skip.end, skip.back_to) for skip in skips.skips] == [(32, 48, 4)]
    found = losses(folder)[: 5 + STEPS - 4]

    never = make_run(tmp_path, CONFIG)
    skips.save(job_folder(never).skips)
    expected = losses(run_stages(never))
    assert found[:4] + found[5:] == expected
    assert found[4] != expected[4]  # what was taken back was learnt from other samples


def test_it_is_resumed_exactly_and_passes_over_checkpoints_of_an_older_release(gone_back):
    folder = job_folder(gone_back)
    checkpoints = finished(folder.checkpoints)
    assert [step_of(path) for path in checkpoints] == [10, 8, 4]  # the newest two; and 4, for good
    for path in checkpoints[:2]:
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["config"]  # as before checkpoints fitted any layout
        (path / MANIFEST).write_text(json.dumps(manifest))
    run_stages(dataclasses.replace(gone_back, attempt=2, fencing_token=2))
    assert "attempt 2 resumed from step 4, layout 1x1x1" in said(folder)
    found = losses(folder)
    assert found[-6:] == found[5:11]


@pytest.fixture
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with TrainingPlatform(folder, mistake="bad_samples") as platform:  # samples 41 and 141
        platform.dataset("texts", text_rows(200))
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


def submit(platform: TrainingPlatform) -> str:
    options = job_pb2.TrainOptions(
        steps=60,
        sequence_length=32,
        micro_batch=4,
        precision="fp32",
        checkpoint_every_steps=5,
        layout="1x1x2",
        dropout=0.1,
        rollback_on="nan",
    )
    spec = job_pb2.PretrainSpec(
        output_model="wary",
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=options,
    )
    return platform.submit(spec)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_job_goes_back_within_its_attempt_and_one_that_is_killed_later_is_the_same(platform):
    outcomes = []
    for is_killed in (False, True):
        job_id = submit(platform)
        if is_killed:
            platform.wait_for_step(job_id, 30, 600)
            platform.kill("worker")
            platform.start("worker")
        job = platform.wait_until_ended(job_id, 600)
        assert (job.state, job.attempts) == (job_pb2.JOB_STATE_SUCCEEDED, 1 + is_killed), job.error
        events = platform.events(job_id)
        back = [text for text in messages(events) if " of at most 20 times)" in text]
        # Sample 41 is in step 6, before which no checkpoint is five steps old: all is left out that was seen. With that
        # sample 141 is in step 12; five steps before it lies checkpoint 5.
        assert "back to the beginning, past samples 0 to 47 (1 of" in back[0]
        assert "back to the checkpoint of step 5, past samples 88 to 143 (2 of" in back[1]
        assert len(back) == 2
        outcomes.append(({report.step: report.loss for report in reports(events)}, platform.files(job_id)))
    assert len(outcomes[0][0]) == 60
    assert outcomes[0] == outcomes[1]
