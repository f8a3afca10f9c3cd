"""kill -9 of whatever runs a job, five times each at random logged moments.

The job goes on from its last checkpoint and succeeds once, with the losses of a job that nothing happened to.
`make test-long`. The seed of the moments is printed; ANTHESIS_KILL_SEED repeats it.
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
from itertools import pairwise
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2

from tests.support.training import MODEL, text_rows
from tests.support.training_platform import TrainingPlatform, losses_by_step, messages, processes_of, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
LOG = logging.getLogger(__name__)
STEPS, EVERY, KILLS = 400, 20, 5
RESUMED = re.compile(r"attempt (\d+) resumed from step (\d+)")


@pytest.fixture(scope="module")
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with TrainingPlatform(folder) as platform:
        platform.dataset("texts", text_rows(300))
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


def submit(platform: TrainingPlatform) -> str:
    options = job_pb2.TrainOptions(
        steps=STEPS,
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


@pytest.fixture(scope="module")
def undisturbed(platform: TrainingPlatform) -> dict[int, float]:
    job_id = submit(platform)
    assert platform.wait_until_ended(job_id, 600).state == job_pb2.JOB_STATE_SUCCEEDED
    return losses_by_step(platform.events(job_id))


def kill(platform: TrainingPlatform, victim: str, job_id: str, rng: random.Random) -> None:
    """SIGKILL the victim and, where nothing of ours restarts it, start it again."""
    if victim == "rank":
        os.kill(rng.choice(platform.ranks(job_id)), signal.SIGKILL)
        return
    platform.kill(victim)
    platform.start(victim)


@pytest.mark.parametrize("victim", ["worker", "rank", "valkey", "relay", "registry"])
def test_a_job_goes_on_from_its_last_checkpoint_whatever_is_killed(platform, undisturbed, victim):
    seed = int(os.environ.get("ANTHESIS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    rng = random.Random(seed)
    LOG.warning("victim %s, ANTHESIS_KILL_SEED=%d", victim, seed)
    job_id = submit(platform)
    moments = sorted(rng.sample(range(1, STEPS - EVERY), KILLS))
    last_kill = 0.0
    for moment in moments:
        # Reported since the last kill: an attempt that was resumed has to get there again.
        platform.wait_for_step(job_id, moment, 600, since=last_kill)
        reached = platform.job(job_id)
        LOG.warning("%s killed at step %d of attempt %d", victim, reached.progress.step, reached.attempts)
        kill(platform, victim, job_id, rng)
        last_kill = time.time()
        if victim in ("worker", "rank"):  # the next kill is to hit the next attempt
            wait_for(lambda before=reached.attempts: platform.job(job_id).attempts > before, 120, "another attempt")

    job = platform.wait_until_ended(job_id, 900)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    events = platform.events(job_id)
    ended = [event.state for event in events if event.state == job_pb2.JOB_STATE_SUCCEEDED]
    assert len(ended) == 1
    assert losses_by_step(events) == undisturbed  # which asserts that steps done twice gave the same loss, too
    assert processes_of(job_id) == []
    if victim in ("worker", "rank"):
        assert job.attempts == KILLS + 1
    else:
        assert job.attempts == 1
    assert_each_attempt_resumed_at_its_last_checkpoint(events)


def assert_each_attempt_resumed_at_its_last_checkpoint(events: list[job_pb2.JobEvent]) -> None:
    """Where the reported steps fall back, they go on after the newest checkpoint, which the event log names."""
    resumed = {int(found.group(2)) for text in messages(events) if (found := RESUMED.search(text))}
    steps = [event.progress.step for event in events if event.WhichOneof("event") == "progress"]
    for before, after in pairwise(steps):
        if after == before + 1:
            continue
        assert after - 1 in resumed
        newest = before // EVERY * EVERY
        # A kill while a checkpoint is written leaves the one before it.
        assert after - 1 in (newest, newest - EVERY)
