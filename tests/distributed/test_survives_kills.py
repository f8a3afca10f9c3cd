"""A full disk, kill -9 of whatever runs a job, and kill -STOP of a rank, five times each at random logged moments.

The job goes on from its last checkpoint and succeeds once, with the losses, the tokens seen and the final weights of a
job that nothing happened to. `make test-long`. The seed of the moments is logged; ANTHESIS_KILL_SEED repeats it.
"""

import json
import logging
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2, registry_pb2

from tests.support.small_disk import filled, small_disk
from tests.support.training import MODEL, text_rows
from tests.support.training_platform import (
    TrainingPlatform,
    longest_silence_s,
    losses_by_step,
    messages,
    processes_of,
    reports,
    wait_for,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
LOG = logging.getLogger(__name__)
STEPS, EVERY, KILLS = 600, 20, 5
FULL_S = 30.0
LAST_MOMENT = STEPS - 100  # training goes on while a moment is noticed
ATTEMPT = ("worker", "rank", "launcher", "stopped rank")  # with which an attempt ends
START = re.compile(r"attempt (\d+) (?:resumed from step (\d+)|started from the beginning)")


@pytest.fixture(scope="module")
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with TrainingPlatform(folder, ANTHESIS_HANG_SECONDS="15", ANTHESIS_STOP_GRACE_SECONDS="3") as platform:
        platform.dataset("texts", text_rows(300))
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


def submit(platform: TrainingPlatform, steps: int = STEPS) -> str:
    options = job_pb2.TrainOptions(
        steps=steps,
        sequence_length=64,
        micro_batch=8,
        precision="bf16",
        optimizer="muon",
        dropout=0.1,
        checkpoint_every_steps=EVERY,
        layout="1x1x2",
    )
    spec = job_pb2.PretrainSpec(
        output_model="survivor",
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=options,
    )
    return platform.submit(spec)


@dataclass(frozen=True)
class Outcome:
    losses: dict[int, float]
    tokens_seen: int
    files: dict[str, str]  # path -> digest: the final weights among them


def outcome_of(platform: TrainingPlatform, job_id: str) -> Outcome:
    """Asserts that steps done twice gave the same loss both times."""
    tokens_seen = platform.job(job_id).progress.tokens_seen
    return Outcome(losses_by_step(platform.events(job_id)), tokens_seen, platform.files(job_id))


@pytest.fixture(scope="module")
def undisturbed(platform: TrainingPlatform) -> Outcome:
    job_id = submit(platform)
    assert platform.wait_until_ended(job_id, 600).state == job_pb2.JOB_STATE_SUCCEEDED
    events = platform.events(job_id)
    assert longest_silence_s(events) < 5
    outcome = outcome_of(platform, job_id)
    assert list(outcome.losses) == list(range(1, STEPS + 1))
    return outcome


def strike(platform: TrainingPlatform, victim: str, job_id: str, rng: random.Random) -> None:
    """SIGKILL the victim and, where nothing of ours restarts it, start it again; SIGSTOP a "stopped rank"."""
    if victim in ("rank", "stopped rank"):
        os.kill(rng.choice(platform.ranks(job_id)), signal.SIGKILL if victim == "rank" else signal.SIGSTOP)
        return
    if victim == "launcher":
        os.kill(platform.launcher(job_id), signal.SIGKILL)
        return
    platform.kill(victim)
    platform.start(victim)


@pytest.mark.parametrize("victim", [*ATTEMPT, "valkey", "relay", "registry"])
def test_a_job_goes_on_from_its_last_checkpoint_whatever_is_killed_or_hangs(platform, undisturbed, victim):
    seed = int(os.environ.get("ANTHESIS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    LOG.warning("victim %s, ANTHESIS_KILL_SEED=%d", victim, seed)
    rng = random.Random(seed)
    trains = victim in ATTEMPT  # or only something that it needs
    fifth = LAST_MOMENT // KILLS
    # A rank that hangs before its second step has an hour for it.
    first = rng.randrange(2, fifth) if victim == "stopped rank" else 0
    moments = [first] + [rng.randrange(1 + number * fifth, 1 + (number + 1) * fifth) for number in range(1, KILLS)]
    job_id = submit(platform)
    last_kill, resumed_at = 0.0, []
    for moment in moments:
        if moment:  # an attempt that was resumed has to get there again
            at_least = max(moment, resumed_at[-1] + 2) if resumed_at else moment
            platform.wait_for_step(job_id, at_least, 600, since=last_kill if trains else 0.0)
        elif trains:  # the first finds the ranks starting, or the job still waiting for a worker
            wait_for(lambda: platform.ranks(job_id) != [], 120, "ranks")
        time.sleep(rng.uniform(0, 0.5))  # any moment of a step, a checkpoint, a heartbeat
        attempts = platform.job(job_id).attempts
        LOG.warning("%s struck at step %d of attempt %d", victim, platform.last_step(job_id), attempts)
        last_kill = time.time()
        strike(platform, victim, job_id, rng)
        if trains:
            wait_for(lambda before=attempts: platform.job(job_id).attempts > before, 120, "another attempt")
            resumed_at.append(platform.last_checkpoint(job_id))  # the next one is seconds away

    job = platform.wait_until_ended(job_id, 900)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    events = platform.events(job_id)
    assert [event.state for event in events].count(job_pb2.JOB_STATE_SUCCEEDED) == 1
    assert versions_of(platform, job_id) == [job.model_version]
    assert outcome_of(platform, job_id) == undisturbed
    assert processes_of(job_id) == []
    if victim in ("rank", "launcher", "stopped rank"):
        assert sum("RANK_DIED" in text for text in messages(events)) == KILLS
    starts = starts_of(events)
    LOG.warning("%s: attempts after the first went on from steps %s", victim, list(starts.values()))
    assert len(starts) < job.attempts  # on a busy machine a lease of six seconds may be lost before ranks start
    if trains:
        assert list(starts.values()) == resumed_at
    elif victim != "registry":  # without which a lease can run out
        assert job.attempts == 1
    assert_steps_fall_back_to_the_last_checkpoint_alone(events, starts)


@contextmanager
def job_on_a_small_disk(platform: TrainingPlatform, steps: int = STEPS, **env: str) -> Iterator[str]:
    """A job whose folder is a disk of its own; env: its worker's."""
    platform.kill("worker")
    job_id = submit(platform, steps)
    with small_disk(platform.folder(job_id).path, "24m"):
        platform.start("worker", **env)
        yield job_id


@pytest.mark.parametrize("number", range(KILLS))
def test_a_disk_that_is_full_for_30_s_during_a_checkpoint_costs_the_checkpoint_and_not_the_job(
    platform, undisturbed, number
):
    seed = int(os.environ.get("ANTHESIS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    moment = random.Random(seed).randrange(1, LAST_MOMENT)
    LOG.warning("full disk %d, ANTHESIS_KILL_SEED=%d", number, seed)
    with job_on_a_small_disk(platform) as job_id:
        folder = platform.folder(job_id)
        platform.wait_for_step(job_id, moment, 600)
        with filled(folder.path):
            LOG.warning("filled at step %d", platform.last_step(job_id))
            time.sleep(FULL_S)
        job = platform.wait_until_ended(job_id, 900)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        said = [text for text in messages(platform.events(job_id)) if "checkpoint could not be written" in text]
        LOG.warning("said %d times: %s", len(said), said[:1])
        assert said
        assert job.attempts == 1
        assert outcome_of(platform, job_id) == undisturbed


def test_a_job_for_which_there_is_never_room_fails_and_says_so(platform):
    with job_on_a_small_disk(platform, steps=100, ANTHESIS_ROOM_SECONDS="5") as job_id:
        platform.wait_for_step(job_id, 10, 600)
        with filled(platform.folder(job_id).path):
            job = platform.wait_until_ended(job_id, 600)
        LOG.warning("%s", messages(platform.events(job_id)))
        assert job.state == job_pb2.JOB_STATE_FAILED
        assert job.error.code == "DISK_FULL"
        assert "free some and submit again" in job.error.message
        assert platform.last_step(job_id) >= 10
    platform.kill("worker")
    platform.start("worker")


def test_a_worker_told_to_stop_while_a_rank_hangs_gives_the_job_back_all_the_same(platform, undisturbed):
    job_id = submit(platform)
    platform.wait_for_step(job_id, 50, 600)
    os.kill(platform.ranks(job_id)[0], signal.SIGSTOP)
    platform.kill("worker", signal.SIGTERM)
    assert processes_of(job_id) == []
    assert platform.job(job_id).state == job_pb2.JOB_STATE_PENDING
    platform.start("worker")
    job = platform.wait_until_ended(job_id, 900)
    assert (job.state, job.attempts) == (job_pb2.JOB_STATE_SUCCEEDED, 2)
    assert any("told to stop; no checkpoint within 3 s" in text for text in messages(platform.events(job_id)))
    assert outcome_of(platform, job_id) == undisturbed


def versions_of(platform: TrainingPlatform, job_id: str) -> list[str]:
    """Names of the versions that the job has made."""
    request = registry_pb2.ListModelVersionsRequest(model="survivor", page_size=100)
    versions = platform.registry.ListModelVersions(request).versions
    return [f"{version.model}@{version.number}" for version in versions if version.job_id == job_id]


def starts_of(events: list[job_pb2.JobEvent]) -> dict[int, int]:
    """Attempt -> the step it says that it went on from."""
    found = [match for text in messages(events) if (match := START.match(text))]
    return {int(match.group(1)): int(match.group(2) or 0) for match in found}


def assert_steps_fall_back_to_the_last_checkpoint_alone(events: list[job_pb2.JobEvent], starts: dict[int, int]) -> None:
    for before, after in pairwise(report.step for report in reports(events)):
        if after == before + 1:
            continue
        newest = before // EVERY * EVERY
        # Killed while the newest was written: the one before it.
        assert after - 1 == newest or (before == newest and after - 1 == newest - EVERY)
        assert after - 1 in starts.values()
