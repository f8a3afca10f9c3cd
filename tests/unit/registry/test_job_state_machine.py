"""The promise of jobs, tried with random histories on the real store: never lost, never run twice at once."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from services.common.artifacts import ArtifactStore
from services.common.errors import Aborted, DomainError, FailedPrecondition
from services.registry.database import Database
from services.registry.datasets import Datasets
from services.registry.job_control import JobControl
from services.registry.job_events import read_events
from services.registry.job_specs import PretrainSpec, TrainOptions
from services.registry.jobs import Jobs, NewJob
from services.registry.leases import Failed, Leases, Stopped, Succeeded, reconcile
from services.registry.tables import ENDED, PAUSED, PENDING, RUNNING, Job, Wakeup
from tests.support.registry_data import DATABASES, ManualClock, fresh_database, store_checkpoint, text_rows

TTL_S, WAKE_AGAIN_S, MAX_LOST = 15.0, 10.0, 4
CONFIG = '{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}'


@dataclass
class Known:
    """What a careful observer of one job has seen."""

    tokens: list[int] = field(default_factory=list)  # as they were given out
    expires: float = 0.0  # of the newest lease, in the clock's seconds
    ended: str = ""


class World:
    """One database, shared by all histories: each makes jobs of its own."""

    def __init__(self, url, folder):
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.artifacts = ArtifactStore(str(folder / "artifacts"), folder / "cache")
        self.database = Database(url)
        self.jobs = Jobs(self.database, self.artifacts, self.clock)
        self.control = JobControl(self.database, self.clock)
        self.leases = Leases(self.database, self.artifacts, ttl_s=TTL_S, max_lost_leases=MAX_LOST, clock=self.clock)
        self.checkpoint = store_checkpoint(self.artifacts)
        datasets = Datasets(self.database, self.artifacts, self.clock)
        self.do(datasets.create("udhr", "TEXT", self.artifacts.write_bytes(text_rows())))

    def do(self, coroutine):
        return self.runner.run(coroutine)

    def close(self):
        self.do(self.database.close())
        self.runner.close()


class JobHistories(RuleBasedStateMachine):
    world: World

    def __init__(self):
        super().__init__()
        self.known: dict[str, Known] = {}
        self.now = 0.0

    def do(self, coroutine):
        return self.world.do(coroutine)

    def row(self, job_id) -> Job:
        return self.do(self.world.jobs.get(job_id))

    def any_job(self, data) -> str:
        return data.draw(st.sampled_from(sorted(self.known)))

    @initialize()
    def two_jobs_are_submitted(self):
        spec = PretrainSpec(
            output_model="sprout",
            tokenizer_digest=self.world.checkpoint.tokenizer_digest,
            datasets=["udhr"],
            config=CONFIG,
            options=TrainOptions(steps=1),
        )
        for priority in ("NORMAL", "HIGH"):
            job = self.do(self.world.jobs.create(NewJob(spec=spec, created_by="ada", priority=priority)))
            self.known[job.id] = Known()

    @rule(seconds=st.sampled_from([1.0, 5.0, 14.0, 20.0]))
    def some_time_passes(self, seconds):
        self.time_passes(seconds)

    def time_passes(self, seconds):
        self.world.clock.advance(seconds)
        self.now += seconds

    @rule()
    def reconciler_runs(self):
        self.do(
            reconcile(self.world.database, wake_again_s=WAKE_AGAIN_S, max_lost_leases=MAX_LOST, clock=self.world.clock)
        )

    @rule()
    def relay_sends_and_the_broker_may_lose_it(self):
        """Whether the message arrives is up to `worker_asks`, which needs none."""

        async def send():
            async with self.world.database.write() as session:
                for wakeup in await session.scalars(select(Wakeup).where(Wakeup.job_id.in_(self.known))):
                    await session.delete(wakeup)

        self.do(send())

    @rule(data=st.data(), worker=st.sampled_from(["w1", "w2"]))
    def worker_asks(self, data, worker):
        self.ask(data, worker)

    @rule(data=st.data())
    def worker_falls_silent_and_another_asks(self, data):
        """Makes the histories in which an old token lives beside a newer one frequent."""
        self.time_passes(20.0)
        self.ask(data, "w4")

    def ask(self, data, worker):
        job_id = self.any_job(data)
        known, before = self.known[job_id], self.row(job_id)
        held = before.state == RUNNING and self.now < known.expires
        try:
            acquired = self.do(self.world.leases.acquire(job_id, worker))
        except Aborted:
            assert held
        except FailedPrecondition:
            assert not held
            assert self.row(job_id).state in {*ENDED, PAUSED}
        else:
            assert not held, "two live leases"
            token = acquired.job.fencing_token
            assert token > max(known.tokens, default=0)
            known.tokens.append(token)
            known.expires = self.now + TTL_S

    @precondition(lambda self: self.tokens())
    @rule(data=st.data())
    def worker_renews(self, data):
        self.worker_speaks(data, "renew")

    @precondition(lambda self: self.tokens())
    @rule(data=st.data())
    def worker_gives_back(self, data):
        self.worker_speaks(data, "release")

    @precondition(lambda self: self.tokens())
    @rule(data=st.data(), how=st.sampled_from(["fail", "succeed", "stop"]))
    def worker_finishes(self, data, how):
        self.worker_speaks(data, how)

    def tokens(self):
        return [(job_id, token) for job_id, known in self.known.items() for token in known.tokens]

    def worker_speaks(self, data, how):
        """With any token that was ever given out; whether it should count is decided from what was seen."""
        job_id, token = data.draw(st.sampled_from(self.tokens()))
        known = self.known[job_id]
        before = self.row(job_id)
        live = before.state == RUNNING and token == known.tokens[-1]
        repeated_end = before.state in ENDED and token == known.tokens[-1] and before.holder is not None
        try:
            self.do(self.speak(job_id, token, how))
        except DomainError:
            assert not live or (how == "stop" and not before.cancel_requested)
            assert columns(self.row(job_id)) == columns(before), "a refused call changed the job"
        else:
            assert live or (repeated_end and how in ("fail", "succeed", "stop"))
            if how == "renew":
                known.expires = self.now + TTL_S
            if repeated_end:
                assert columns(self.row(job_id)) == columns(before)

    def speak(self, job_id, token, how):
        leases = self.world.leases
        match how:
            case "renew":
                return leases.renew(job_id, token, messages=["still here"])
            case "release":
                return leases.release(job_id, token, "told to stop")
            case "fail":
                return leases.finish(job_id, token, Failed("RANK_DIED", "rank 1 died"))
            case "succeed":
                return leases.finish(job_id, token, Succeeded(self.world.checkpoint.files))
        return leases.finish(job_id, token, Stopped())

    @rule(data=st.data())
    def worker_asks_for_whatever_is_in_turn(self, data):
        """It gets one that nobody holds, and what it had asked for is woken again."""
        job_id = self.any_job(data)
        before = {known: self.row(known).state for known in self.known}
        if before[job_id] != PENDING:
            return
        job = self.do(self.world.leases.acquire(job_id, "w5", kinds=["pretrain"])).job
        assert before[job.id] == PENDING, "two live leases"
        assert job.fencing_token > max(self.known[job.id].tokens, default=0)
        self.known[job.id].tokens.append(job.fencing_token)
        self.known[job.id].expires = self.now + TTL_S
        if job.id != job_id:
            assert job.priority == "HIGH"
            assert self.do(self.count_wakeups(job_id)) >= 1, "an accepted job was lost"

    @rule(data=st.data())
    def user_pauses(self, data):
        job_id = self.any_job(data)
        before = self.row(job_id)
        try:
            self.do(self.world.control.pause(job_id))
        except FailedPrecondition:
            assert before.ended or before.state == PAUSED or before.pause_requested or before.cancel_requested
            assert columns(self.row(job_id)) == columns(before), "a refused call changed the job"
        else:
            after = self.row(job_id)
            assert (after.state == PAUSED) == (before.state == PENDING)

    @rule(data=st.data())
    def user_resumes(self, data):
        job_id = self.any_job(data)
        before = self.row(job_id)
        try:
            self.do(self.world.control.resume(job_id))
        except FailedPrecondition:
            assert before.state != PAUSED
            assert not before.pause_requested
        else:
            after = self.row(job_id)
            assert (after.state, after.pause_requested) in [(PENDING, False), (RUNNING, False)]

    @rule(data=st.data())
    def user_cancels(self, data):
        job_id = self.any_job(data)
        before = self.row(job_id)
        try:
            self.do(self.world.jobs.cancel(job_id))
        except FailedPrecondition:
            assert before.ended or before.cancel_requested

    @invariant()
    def what_has_ended_stays_ended(self):
        for job_id, state in self.do(self.states()):
            known = self.known[job_id]
            assert not known.ended or state == known.ended
            known.ended = state if state in ENDED else ""

    async def states(self):
        async with self.world.database.read() as session:
            return list(await session.execute(select(Job.id, Job.state).where(Job.id.in_(self.known))))

    def teardown(self):
        """However it went, every job that has not ended is woken, taken and brought to its end."""
        for job_id in self.known:
            self.world.clock.advance(TTL_S + WAKE_AGAIN_S)
            self.reconciler_runs()
            if self.row(job_id).state == PAUSED:
                self.do(self.world.control.resume(job_id))
            job = self.row(job_id)
            if not job.ended:
                assert job.state == PENDING
                assert self.do(self.count_wakeups(job_id)) >= 1, "an accepted job was lost"
                token = self.do(self.world.leases.acquire(job_id, "w3")).job.fencing_token
                self.do(self.speak(job_id, token, "succeed"))
            self.check_events(job_id)

    async def count_wakeups(self, job_id):
        async with self.world.database.read() as session:
            return len(list(await session.scalars(select(Wakeup).where(Wakeup.job_id == job_id))))

    def check_events(self, job_id):
        async def events():
            async with self.world.database.read() as session:
                return await read_events(session, job_id, after=0)

        found = self.do(events())
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
        ends = [event for event in found if event.body.get("state") in ENDED]
        assert ends == found[-1:], "a job ends once, and nothing follows"


def columns(job: Job) -> dict[str, object]:
    return {column.name: getattr(job, column.name) for column in Job.__table__.columns}


@pytest.mark.parametrize("kind", DATABASES)
def test_no_history_loses_a_job_or_gives_it_to_two_workers(kind, tmp_path):
    world = World(fresh_database(kind, tmp_path), tmp_path)

    class Histories(JobHistories):
        pass

    Histories.world = world
    try:
        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=40,
                stateful_step_count=15,
                derandomize=True,
                phases=[Phase.generate],  # shrinking on a real store takes minutes
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        world.close()
