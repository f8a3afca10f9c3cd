"""A lease is renewed with progress in time, and given up before it can expire."""

from pathlib import Path

import pytest
from anthesis.errors import AbortedError, UnavailableError

from services.trainer import lease as lease_module
from services.trainer.energy import Energy
from services.trainer.job_log import JobLog
from services.trainer.lease import CancelRequested, HeldLease, LeaseLost
from services.trainer.lease_file import write_lease
from services.trainer.progress import Progress, ProgressReader, ProgressWriter
from services.trainer.registry_client import Assignment, Wishes

TTL_S = 15.0


class Registry:
    """A registry that answers as it is told; it keeps what was reported."""

    def __init__(self) -> None:
        self.answer: Exception | Wishes = Wishes()
        self.reported: list[int] = []
        self.log = ""

    def renew(self, held, report, *, timeout_s):
        if isinstance(self.answer, Exception):
            raise self.answer
        self.reported += [step.step for step in report.progress]
        self.log = self.log[: report.printed[0]] + report.printed[1]
        self.energy = report.energy
        return self.answer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "boot_clock", clock)
    return clock


@pytest.fixture
def lease(registry, clock: Clock, tmp_path: Path) -> HeldLease:
    held = Assignment(job_id="job", attempt=1, fencing_token=1, ttl_s=TTL_S, asked=clock.now, spec=lambda: None)
    log = JobLog(tmp_path / "train.log", 1, 0)
    return HeldLease(registry, held, tmp_path / "lease", ProgressReader(tmp_path / "progress.jsonl"), log)


def keep_for(lease: HeldLease, clock: Clock, seconds: float) -> None:
    end = clock.now + seconds
    while clock.now < end:
        lease.keep()
        clock.now += 0.2


def write_step(writer: ProgressWriter, step: int) -> None:
    writer.step(
        Progress(step=step, total_steps=30, loss=1, learning_rate=1, grad_norm=1, tokens_per_second=1, tokens_seen=1,
                 seconds_left=0, time=0)
    )  # fmt: skip
    writer.flush()


def test_each_renewal_tells_what_the_attempt_has_used(registry, clock, tmp_path):
    held = Assignment(job_id="job", attempt=1, fencing_token=1, ttl_s=TTL_S, asked=clock.now, spec=lambda: None)
    reader, log = ProgressReader(tmp_path / "progress.jsonl"), JobLog(tmp_path / "train.log", 1, 0)
    used = [Energy(joules={"package": joules}) for joules in (2.0, 1.0)]
    lease = HeldLease(registry, held, tmp_path / "lease", reader, log, energy=used.pop)
    for joules in (1.0, 2.0):
        lease.report()
        assert registry.energy == Energy(joules={"package": joules})


def test_it_is_given_up_before_it_can_expire(registry, lease, clock):
    registry.answer = UnavailableError("down")
    started = clock.now
    with pytest.raises(LeaseLost, match="no answer from the registry"):
        keep_for(lease, clock, 60)
    assert clock.now - started < TTL_S


def test_it_survives_a_registry_that_is_away_for_a_moment_and_loses_no_step(registry, lease, clock, tmp_path):
    writer = ProgressWriter(tmp_path / "progress.jsonl")
    registry.answer = UnavailableError("restarting")
    for number in (1, 2):
        write_step(writer, number)
        keep_for(lease, clock, 4)
    registry.answer = Wishes()
    keep_for(lease, clock, 2 * TTL_S)
    assert registry.reported == [1, 2]


def test_a_stale_token_ends_it_at_once(registry, lease, clock):
    registry.answer = AbortedError("token 1 is stale")
    with pytest.raises(LeaseLost, match="stale"):
        keep_for(lease, clock, TTL_S)


def test_a_cancelled_job_is_noticed(registry, lease, clock):
    registry.answer = Wishes(cancel=True)
    with pytest.raises(CancelRequested):
        keep_for(lease, clock, TTL_S)


def test_a_pause_is_noticed_and_taken_back(registry, lease, clock):
    assert not lease.pause_requested
    registry.answer = Wishes(pause=True)
    keep_for(lease, clock, 4)
    assert lease.pause_requested
    registry.answer = Wishes()
    keep_for(lease, clock, 4)
    assert not lease.pause_requested


def test_all_that_was_printed_is_reported_over_a_registry_that_is_away(registry, lease, clock, tmp_path):
    printed = "".join(f"line {number} {'x' * 50}\n" for number in range(3000))  # more than one call carries
    (tmp_path / "train.log").write_text(printed)
    registry.answer = UnavailableError("restarting")
    lease.report_all()
    registry.answer = Wishes()
    lease.report_all()
    assert registry.log == printed


def test_the_ranks_are_told_a_time_before_the_end_of_the_lease(lease, clock, tmp_path):
    token, left_s, _ = (tmp_path / "lease").read_text().split()
    assert token == "1"
    assert 0 < float(left_s) < TTL_S
    assert float(left_s) > TTL_S - 3  # but not so early that they end while the worker holds it


def test_processes_are_ended_for_good(registry, lease, clock, tmp_path):
    lease.end_processes()
    lease.report()
    token, left_s, _ = (tmp_path / "lease").read_text().split()
    assert (token, float(left_s)) == ("1", 0.0)


def test_a_later_attempts_processes_are_not_ended(lease, tmp_path):
    write_lease(tmp_path / "lease", 2, 9.0)
    lease.end_processes()
    token, left_s, _ = (tmp_path / "lease").read_text().split()
    assert (token, float(left_s)) == ("2", 9.0)


def test_progress_is_reported_at_least_every_five_seconds(registry, lease, clock, tmp_path):
    writer = ProgressWriter(tmp_path / "progress.jsonl")
    heard = []
    for number in range(1, 31):  # a step a second
        write_step(writer, number)
        keep_for(lease, clock, 1)
        heard.append(len(registry.reported))
    assert all(after > before for before, after in zip(heard, heard[5:], strict=False))
