"""Holding a job's lease: renewed with progress in time, given up in time when it cannot be."""

import logging
from collections.abc import Callable
from pathlib import Path

from anthesis.errors import (
    AbortedError,
    AnthesisError,
    FailedPreconditionError,
    NotFoundError,
)

from services.trainer.energy import Energy
from services.trainer.job_log import MAX_BEHIND, MAX_SENT, JobLog
from services.trainer.lease_file import token_of, write_lease
from services.trainer.processes import boot_clock
from services.trainer.progress import Progress, ProgressReader
from services.trainer.registry_client import Assignment, RegistryClient, Report

LOG = logging.getLogger(__name__)
RENEW_EVERY_S = 2.0
# What another worker can be told once the lease is over: that the registry gave it away, or forgot the job.
LOST = (AbortedError, FailedPreconditionError, NotFoundError)


class LeaseLost(Exception):
    """Another worker may run the job now: end what was started, report nothing."""


class CancelRequested(Exception):
    """The submitter wants the job to end."""


class HeldLease:
    """A lease from the moment it was taken. `keep` is called often, from the thread that watches the processes."""

    def __init__(
        self,
        registry: RegistryClient,
        held: Assignment,
        lease_file: Path,
        reader: ProgressReader,
        log: JobLog,
        on_steps: Callable[[list[Progress]], None] = lambda steps: None,
        energy: Callable[[], Energy] = Energy,
    ) -> None:
        """on_steps: told of new steps when they are read. energy: what the attempt has used so far."""
        self._registry = registry
        self._held = held
        self._lease_file = lease_file
        self._reader = reader
        self._log = log
        self._on_steps = on_steps
        self._energy = energy
        self._margin_s = min(3.0, held.ttl_s / 3)  # in which the processes are killed
        self._progress: list[Progress] = []  # read, not yet reported
        self._messages: list[str] = []
        self._has_ended = False
        self.pause_requested = False
        self._extend(held.asked)

    def _extend(self, asked: float) -> None:
        """Count the lease from when it was asked for, not from when the answer came."""
        self._asked = asked
        self._until = asked + self._held.ttl_s - self._margin_s
        self._next = asked + min(RENEW_EVERY_S, self._held.ttl_s / 5)
        if not self._has_ended:
            left_s = asked + self._held.ttl_s - self._margin_s / 2 - boot_clock()
            write_lease(self._lease_file, self._held.fencing_token, left_s)

    def end_processes(self) -> None:
        """Have processes that still run, on whatever host, end at their next look at the lease."""
        self._has_ended = True
        if token_of(self._lease_file) == self._held.fencing_token:  # else a later attempt's has taken its place
            write_lease(self._lease_file, self._held.fencing_token, 0.0)

    def keep(self) -> None:
        """Renew when it is time. Raises LeaseLost, CancelRequested."""
        now = boot_clock()
        if now >= self._until:
            raise LeaseLost(f"no answer from the registry for {now - self._asked:.1f} s")
        if now >= self._next:
            self.report()

    def report(self) -> bool:
        """Renew now, with all progress; say whether the registry has heard. One that does not answer is asked again.

        Raises as `keep` does.
        """
        now = boot_clock()
        self._collect()
        try:
            timeout_s = max(0.1, min(2.0, self._until - now))
            printed = self._log.part()
            report = Report(self._progress, self._messages, printed, self._energy())
            wishes = self._registry.renew(self._held, report, timeout_s=timeout_s)
        except LOST as error:
            raise LeaseLost(str(error)) from error
        except AnthesisError as error:
            LOG.warning("job %s: the registry does not answer (%s); trying again", self._held.job_id, error)
            self._next = boot_clock() + 0.5
            return False
        self._progress, self._messages = [], []
        self._reader.reported()
        self._log.reported()
        self._extend(now)
        if len(self._log.part()[1]) > MAX_SENT // 2:  # it prints faster than is renewed
            self._next = now
        self.pause_requested = wishes.pause
        if wishes.cancel:
            raise CancelRequested
        return True

    def report_all(self) -> None:
        """Report, until all that was printed is with the registry. Raises as `keep` does."""
        for _ in range(1 + MAX_BEHIND // MAX_SENT):
            if not self.report() or not self._log.part()[1]:
                return

    def _collect(self) -> None:
        progress, messages = self._reader.read()
        self._on_steps(progress)
        self._progress += progress
        self._messages += messages

    def say(self, message: str) -> None:
        """Have an event for people reported with the next progress."""
        self._messages.append(message)

    def unreported(self) -> list[Progress]:
        """Progress that the registry has not seen, for the call that ends the job."""
        self._collect()
        return self._progress
