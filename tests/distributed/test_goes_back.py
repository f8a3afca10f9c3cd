"""Real ranks that go back past samples which give no number; and what they make of checkpoints that are not theirs."""

import dataclasses
import json

from services.trainer.early_end import EarlyEnd
from services.trainer.folder import JobFolder
from services.trainer.progress import ProgressReader
from services.trainer.retention import finished, step_of
from services.trainer.saved_state import MANIFEST
from services.trainer.skips import Skips
from tests.support.training import BASE, job_folder, losses, make_run, run_stages

STEPS, BATCH = 10, 8
CONFIG = dataclasses.replace(
    BASE, steps=STEPS, micro_batch=BATCH, checkpoint_every_steps=2, rollback_on="nan", dropout=0.1
)


def said(folder: JobFolder) -> list[str]:
    return ProgressReader(folder.progress).read()[1]


def test_a_run_goes_back_past_bad_samples_and_ends_as_one_that_never_saw_them(tmp_path):
    spec = make_run(tmp_path / "bad", CONFIG)
    folder = run_stages(spec, mistake="bad_samples")  # sample 41, in the sixth step
    end = EarlyEnd.take(folder.early_end(spec.fencing_token))
    assert end is not None
    assert end.again
    assert any(
        "step 6: loss nan, gradient norm" in text and "samples 40 to 47: windows" in text for text in said(folder)
    )
    skips = Skips.load(folder.skips)
    assert [(skip.first, skip.end, skip.back_to) for skip in skips.skips] == [(32, 48, 4)]
    run_stages(spec, mistake="bad_samples")
    assert "attempt 1 resumed from step 4, layout 1x1x1" in said(folder)
    found = losses(folder)
    assert len(found) == 5 + STEPS - 4

    never = make_run(tmp_path / "never", CONFIG)
    skips.save(job_folder(never).skips)
    expected = losses(run_stages(never))
    assert found[:4] + found[5:] == expected
    assert found[4] != expected[4]  # what was taken back was learnt from other samples


def test_a_checkpoint_of_an_older_release_is_passed_over(tmp_path):
    config = dataclasses.replace(BASE, steps=8, checkpoint_every_steps=2, keep_last=2, keep_every_steps=4)
    spec = make_run(tmp_path, config)
    folder = run_stages(spec)
    before = losses(folder)
    checkpoints = finished(folder.checkpoints)
    assert [step_of(path) for path in checkpoints] == [8, 6, 4]  # 4 for good
    for path in checkpoints[:2]:
        manifest = json.loads((path / MANIFEST).read_text())
        del manifest["config"]  # as before checkpoints fitted any layout
        (path / MANIFEST).write_text(json.dumps(manifest))
    run_stages(dataclasses.replace(spec, attempt=2, fencing_token=2))
    assert "attempt 2 resumed from step 4, layout 1x1x1" in said(folder)
    assert losses(folder)[8:] == before[4:]
