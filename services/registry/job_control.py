"""Pausing jobs and resuming them."""

from services.common.errors import FailedPrecondition
from services.registry import audit
from services.registry.database import Clock, Database, utc_now
from services.registry.job_events import enter, lock_job, say
from services.registry.tables import PAUSED, PENDING, Job


class JobControl:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def pause(self, job_id: str) -> Job:
        """Pause a PENDING job; ask the worker of a RUNNING one to stop with a checkpoint and give it back.

        Raises NotFound, FailedPrecondition.
        """
        now = self._clock()
        async with self._database.write() as session:
            job = await lock_job(session, job_id)
            _check_can_pause(job)
            audit.record(session, now, f"job/{job.id}", "pause requested")
            if job.state == PENDING:
                enter(session, job, PAUSED, now)
            else:
                job.pause_requested = True
                say(session, job, now, "pause requested")
        return job

    async def resume(self, job_id: str) -> Job:
        """Let a PAUSED job wait for a worker; take back the pause that a RUNNING one was asked for.

        Raises NotFound, FailedPrecondition.
        """
        now = self._clock()
        async with self._database.write() as session:
            job = await lock_job(session, job_id)
            if job.state == PAUSED:
                enter(session, job, PENDING, now)
            elif job.pause_requested:  # should the worker have stopped by now, the job goes on with the next
                job.pause_requested = False
                say(session, job, now, "pause taken back")
            else:
                raise FailedPrecondition(f"job {job.id} is {job.state} and nobody has paused it; nothing is to resume")
            audit.record(session, now, f"job/{job.id}", "resumed")
        return job


def _check_can_pause(job: Job) -> None:
    if job.ended:
        raise FailedPrecondition(f"job {job.id} has already ended: {job.state}; nothing is left to pause")
    if job.state == PAUSED or job.pause_requested:
        which = "is paused" if job.state == PAUSED else "is already being paused"
        raise FailedPrecondition(f"job {job.id} {which}; `anthesis jobs resume {job.id}` lets it go on")
    if job.cancel_requested:
        raise FailedPrecondition(f"job {job.id} is being cancelled; it cannot be paused any more")
