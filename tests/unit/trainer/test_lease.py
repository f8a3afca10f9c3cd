"""A lease is renewed with progress in time, and given up before it can expire."""

import time

import pytest
from anthesis.errors import AbortedError, UnavailableError

from services.trainer.lease import CancelRequested, HeldLease, LeaseLost
from services.trainer.processes import boot_clock
from services.trainer.progress import Progress, ProgressReader, ProgressWriter
from services.trainer.registry_client import Assignment

TTL_S = 1.2


class Registry:
    """A registry that answers as it is told; it keeps what was reported."""

    def __init__(self) -> None:
        self.answer: Exception | bool = False  # or whether to cancel
        self.reported: list[int] = []

    def renew(self, held, progress, messages, *, timeout_s):
        if isinstance(self.answer, Exception):
            raise self.answer
        self.reported += [step.step for step in progress]
        return self.answer


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def lease(registry, tmp_path) -> HeldLease:
    held = Assignment(job_id="job", attempt=1, fencing_token=1, ttl_s=TTL_S, asked=boot_clock(), spec=lambda: None)
    return HeldLease(registry, held, tmp_path / "lease", ProgressReader(tmp_path / "progress.jsonl"))


def keep_for(lease: HeldLease, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lease.keep()
        time.sleep(0.02)


def test_it_is_given_up_before_it_can_expire(registry, lease):
    registry.answer = UnavailableError("down")
    started = boot_clock()
    with pytest.raises(LeaseLost, match="no answer from the registry"):
        keep_for(lease, 10)
    assert boot_clock() - started < TTL_S


def test_it_survives_a_registry_that_is_away_for_a_moment_and_loses_no_step(registry, lease, tmp_path):
    writer = ProgressWriter(tmp_path / "progress.jsonl")
    registry.answer = UnavailableError("restarting")
    for number in (1, 2):
        writer.step(
            Progress(step=number, total_steps=2, loss=1, learning_rate=1, grad_norm=1, tokens_per_second=1,
                     tokens_seen=1, seconds_left=0, time=0)
        )  # fmt: skip
        writer.flush()
        keep_for(lease, 0.3)
    registry.answer = False
    keep_for(lease, 2 * TTL_S)
    assert registry.reported == [1, 2]


def test_a_stale_token_ends_it_at_once(registry, lease):
    registry.answer = AbortedError("token 1 is stale")
    with pytest.raises(LeaseLost, match="stale"):
        keep_for(lease, TTL_S)


def test_a_cancelled_job_is_noticed(registry, lease):
    registry.answer = True
    with pytest.raises(CancelRequested):
        keep_for(lease, TTL_S)


def test_the_ranks_are_told_a_time_before_the_end_of_the_lease(lease, tmp_path):
    assert float((tmp_path / "lease").read_text()) < boot_clock() + TTL_S
