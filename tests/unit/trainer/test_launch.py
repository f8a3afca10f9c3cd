"""How many processes a job may start on a machine."""

import pytest

from bloom.layout import Layout
from services.trainer.config import RunSpec, TrainConfig
from services.trainer.failure import JobFailure
from services.trainer.launch import fitted, this_machine


def run(layout: Layout, attempt: int = 1, gradient_accumulation: int = 1) -> RunSpec:
    config = TrainConfig(steps=1, layout=layout, gradient_accumulation=gradient_accumulation)
    return RunSpec(
        job_id="job",
        attempt=attempt,
        fencing_token=1,
        config=config,
        datasets=(),
        tokenizer_digest="",
        data_dir="",
        artifacts_url="",
    )


@pytest.mark.parametrize(("ranks", "cores"), [(1, 1), (2, 1), (2, 2), (32, 32)])
def test_as_many_ranks_as_cores_are_started_and_two_anywhere(ranks: int, cores: int) -> None:
    assert fitted(run(Layout(dp=ranks)), *this_machine(cores)) == run(Layout(dp=ranks))


@pytest.mark.parametrize("layout", [Layout(dp=64), Layout(tp=8, pp=8)])
def test_more_ranks_than_cores_are_refused_with_what_the_machine_can_do(layout: Layout) -> None:
    with pytest.raises(JobFailure, match=r"asks for 64 processes, .* has 2 cores; use at most '1x1x2'") as bad:
        fitted(run(layout), *this_machine(2))
    assert (bad.value.code, bad.value.parameter) == ("BAD_LAYOUT", "layout")


def test_a_job_that_comes_back_to_a_smaller_machine_has_fewer_replicas_and_the_same_batch() -> None:
    began = run(Layout(tp=2, dp=6), attempt=2, gradient_accumulation=2)
    config = fitted(began, *this_machine(10)).config
    assert (config.layout, config.gradient_accumulation) == (Layout(tp=2, dp=4), 3)
    assert config.global_batch == began.config.global_batch


def test_what_shares_a_layer_cannot_come_back_to_a_machine_without_room_for_it() -> None:
    with pytest.raises(JobFailure, match="asks for 8 processes"):
        fitted(run(Layout(tp=4, dp=2), attempt=2), *this_machine(2))
