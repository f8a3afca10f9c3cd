"""What rank 0 decides between two steps, and what it leaves behind."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from services.trainer.config import TrainConfig
from services.trainer.dataset import Windows, WindowsMeta, write_meta
from services.trainer.early_end import EarlyEnd
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.progress import ProgressReader, ProgressWriter
from services.trainer.skips import Skips
from services.trainer.spikes import WINDOW
from services.trainer.steering import MAX_ROLLBACKS, Steering, Verdict
from tests.support.training import BASE, make_run
from tests.unit.trainer.test_progress import step

CPU = torch.device("cpu")
NUM_WINDOWS, LENGTH = 100, 4
CONFIG = dataclasses.replace(BASE, micro_batch=2, checkpoint_every_steps=10)


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    folder = JobFolder(tmp_path)
    for done in (10, 20, 30):
        (folder.checkpoints / f"step-{done:08d}").mkdir(parents=True)
    return folder


def windows(folder: Path) -> Windows:
    for name in ("inputs", "targets"):
        np.zeros((NUM_WINDOWS, LENGTH), np.int32).tofile(folder / f"{name}.bin")
    write_meta(
        folder,
        WindowsMeta(
            sequence_length=LENGTH,
            variants=(NUM_WINDOWS,),
            packed=False,
            num_targets=NUM_WINDOWS * LENGTH,
            num_truncated=0,
            fingerprint="",
        ),
    )
    return Windows(folder, seed=1)


def steering(folder: JobFolder, config: TrainConfig = CONFIG, first: int = 0) -> Steering:
    spec = make_run(folder.path, config, fencing_token=7)
    return Steering(spec, folder, windows(folder.path), ProgressWriter(folder.progress), first)


def told(steering: Steering, number: int, loss: float = 1.0, grad_norm: float = 1.0) -> Verdict:
    report = dataclasses.replace(step(number), loss=loss, grad_norm=grad_norm)
    return steering.verdict(report, CPU)


def going_back(on: str) -> TrainConfig:
    return dataclasses.replace(CONFIG, rollback_on=on)


def events(folder: JobFolder) -> list[str]:
    return ProgressReader(folder.progress).read()[1]


def test_what_is_no_number_fails_the_job_and_names_the_samples(folder):
    judge = steering(folder)
    assert told(judge, 33) is Verdict.GO_ON
    with pytest.raises(JobFailure, match=r"step 34: loss nan, gradient norm 1.0; lower learning_rate") as failed:
        told(judge, 34, loss=math.nan)
    assert failed.value.code == "DIVERGED"
    order = windows(folder.path).where(66, 2)
    assert events(folder) == [f"step 34: loss nan, gradient norm 1.0; its batch was samples 66 to 67: {order}"]


@pytest.mark.parametrize("on", ["nan", "spike"])
def test_a_run_that_may_goes_back_past_what_is_no_number(folder, on):
    judge = steering(folder, going_back(on))
    assert told(judge, 35, grad_norm=math.inf) is Verdict.GO_BACK
    judge.go_back(35)
    # Step 30 is not ten steps before; samples are counted from 0.
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step-00000010", "step-00000020"]
    (skip,) = Skips.load(folder.skips).skips
    assert (skip.first, skip.end, skip.step, skip.back_to) == (40, 70, 35, 20)
    end = EarlyEnd.take(folder.early_end(7))
    assert end is not None
    assert end.again
    assert "back to the checkpoint of step 20, past samples 40 to 69 (1 of at most 20 times)" in end.reason
    assert EarlyEnd.take(folder.early_end(7)) is None


def test_without_a_checkpoint_early_enough_it_goes_back_to_the_beginning(folder):
    judge = steering(folder, going_back("nan"))
    assert told(judge, 12, loss=math.inf) is Verdict.GO_BACK
    judge.go_back(12)
    assert list(folder.checkpoints.iterdir()) == []
    assert Skips.load(folder.skips).at(0) == 24


def test_a_spike_is_an_event_and_reason_to_go_back_only_where_that_is_asked(folder):
    for on, expected in [("none", Verdict.GO_ON), ("nan", Verdict.GO_ON), ("spike", Verdict.GO_BACK)]:
        judge = steering(folder, going_back(on))
        for number in range(WINDOW):
            assert told(judge, number + 1, loss=2.0 + number % 2) is Verdict.GO_ON
        assert told(judge, WINDOW + 1, loss=12.0) is expected
    assert [text.split(" standard")[0] for text in events(folder)] == ["step 65: loss 12 is 19.0"] * 3


def test_a_resumed_run_judges_by_the_losses_before_it(folder):
    for number in range(WINDOW):
        writer = ProgressWriter(folder.progress)
        writer.step(dataclasses.replace(step(number + 1), loss=2.0 + number % 2))
        writer.flush()
    judge = steering(folder, going_back("spike"), first=WINDOW)
    assert told(judge, WINDOW + 1, loss=12.0) is Verdict.GO_BACK


def test_it_goes_back_so_many_times_and_no_more(folder):
    for _ in range(MAX_ROLLBACKS):
        judge = steering(folder, going_back("nan"))
        assert told(judge, 30, loss=math.nan) is Verdict.GO_BACK
        judge.go_back(30)
    assert Skips.load(folder.skips).at(40) == 40 + MAX_ROLLBACKS * 20
    with pytest.raises(JobFailure, match="gone back 20 times already"):
        told(steering(folder, going_back("nan")), 30, loss=math.nan)


def test_a_stop_file_and_the_worker_stop_the_run(folder):
    judge = steering(folder)
    assert told(judge, 1) is Verdict.GO_ON
    folder.pause(6).touch()  # an earlier attempt's
    assert told(judge, 2) is Verdict.GO_ON
    folder.pause(7).touch()
    assert told(judge, 3) is Verdict.STOP
    judge.stop(3, "")
    end = EarlyEnd.take(folder.early_end(7))
    assert end == EarlyEnd(again=False, reason="the worker was told to stop: checkpoint of step 3")
    folder.stop.touch()
    assert told(judge, 4) is Verdict.STOP
    judge.stop(4, "rank 1: no space")
    written = json.loads(folder.early_end(7).read_text())
    assert (
        written["reason"] == f"{folder.stop} is there; remove it to go on: no checkpoint of step 4 (rank 1: no space)"
    )
