"""One attempt at a job: lease, prepare, launch, watch, finish."""

import contextlib
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from anthesis.errors import AnthesisError, InvalidArgumentError

from bloom.layout import Layout
from services.common.settings import ROOT, Platform
from services.trainer.clean_corpus import CleanSpec
from services.trainer.config import RunSpec
from services.trainer.dataset_report.spec import ReportSpec
from services.trainer.early_end import EarlyEnd
from services.trainer.energy import AttemptEnergy, default_gpu, first_gpus
from services.trainer.failure import NO_ROOM_TO_SAY, JobFailure, from_exception
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.harness.spec import HarnessSpec
from services.trainer.hosts import (
    HOSTFILE_VARIABLE,
    Hosts,
    find_command,
    how_it_died,
    runner_command,
    runner_environment,
    stacks_on,
    written_environment,
)
from services.trainer.import_model import ImportSpec
from services.trainer.job_log import JobLog
from services.trainer.launch import (
    clean_command,
    deepspeed_command,
    environment,
    evaluate_command,
    fitted,
    harness_command,
    import_command,
    marked,
    num_cores,
    prepare_command,
    report_command,
    this_machine,
    tokenizer_command,
)
from services.trainer.lease import LOST, CancelRequested, HeldLease, LeaseLost
from services.trainer.processes import boot_clock, kill_group, kill_leftovers, start
from services.trainer.progress import ProgressReader
from services.trainer.registry_client import Assignment, RegistryClient
from services.trainer.room import when_there_is_room
from services.trainer.tracking.processes import Trackers
from services.trainer.train_tokenizer import TokenizerSpec
from services.trainer.watchdog import Patience, Watchdog, stacks

LOG = logging.getLogger(__name__)
POLL_S = 0.2
ACQUIRE_FOR_S = 60.0  # a registry that does not answer is asked this long; then the reconciler wakes us again
TOLD_TO_STOP = "the worker was told to stop"
MAX_FRUITLESS_DEATHS = 5  # attempts whose ranks are killed before they reach another checkpoint

OneProcess = ReportSpec | TokenizerSpec | CleanSpec | ImportSpec
_COMMANDS: Mapping[type[OneProcess], Callable[[Path], list[str]]] = {
    ReportSpec: report_command,
    TokenizerSpec: tokenizer_command,
    CleanSpec: clean_command,
    ImportSpec: import_command,
}


class Stopped(Exception):
    """The job is to be given back: this worker is told to stop, or the job is."""


class Killed(Exception):
    """A process of the attempt was killed from outside, or hangs: worth another attempt."""


def run_job(
    job_id: str, registry: RegistryClient, platform: Platform, worker_id: str, should_stop: Callable[[], bool]
) -> None:
    """Run to its end the job, or the one whose turn it is before it, if its lease can be had. Call from a thread that
    lives as long: processes die with it.
    """
    stopped = {path.parent.name for path in (platform.data_dir / "jobs").glob("*/stop")}
    if job_id in stopped:  # the reconciler wakes us again
        stop = JobFolder(platform.data_dir / "jobs" / job_id).stop
        LOG.info("job %s: left alone while %s is there", job_id, stop)
        return
    held = acquire(job_id, registry, worker_id, should_stop, but=stopped)
    if held is not None:
        LOG.info("job %s: attempt %d with token %d", held.job_id, held.attempt, held.fencing_token)
        Attempt(held, registry, platform, should_stop).run()


def acquire(
    job_id: str,
    registry: RegistryClient,
    worker_id: str,
    should_stop: Callable[[], bool],
    but: Collection[str] = (),
) -> Assignment | None:
    """The lease of the job, or of the one whose turn it is before it, none of `but`; None when we are to run none."""
    give_up = time.monotonic() + ACQUIRE_FOR_S
    while not should_stop():
        try:
            return registry.acquire(job_id, worker_id, but)
        except LOST as error:
            LOG.info("job %s: nothing to do: %s", job_id, error)
            return None
        except AnthesisError as error:
            if time.monotonic() > give_up:
                LOG.error("job %s: no lease: %s", job_id, error)
                return None
            time.sleep(1)
    return None


class Attempt:
    def __init__(
        self, held: Assignment, registry: RegistryClient, platform: Platform, should_stop: Callable[[], bool]
    ) -> None:
        self._held = held
        self._registry = registry
        self._should_stop = should_stop
        self._folder = JobFolder(platform.data_dir / "jobs" / held.job_id)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._reader = ProgressReader(self._folder.progress)
        self._watchdog = Watchdog(Patience.from_env(), (self._folder.progress, self._folder.validating))
        self._has_asked_to_stop = False
        self._told_to_stop = 0.0  # when the worker was, on the boot clock
        self._keep_every = 0  # steps whose checkpoints outlive the job
        self._hosts: Hosts | None = None  # None: all ranks run on this machine
        log = JobLog(self._folder.log, held.fencing_token, held.log_end)
        self._energy = AttemptEnergy(self._folder, held.fencing_token)
        self._lease = HeldLease(
            registry, held, self._folder.lease, self._reader, log, self._watchdog.saw, self._energy.so_far
        )

    def run(self) -> None:
        """Run the job and tell the registry how it ended; say nothing once the lease is lost."""
        killed = kill_leftovers(self._held.job_id, older_than=self._held.fencing_token)
        if killed:
            LOG.warning("job %s: killed processes of earlier attempts: %s", self._held.job_id, killed)
        try:
            spec = self._held.spec() if self._held.spec else None
            if isinstance(spec, RunSpec):
                self._run_stages(spec)
            elif spec:
                self._run_one(spec)
            else:
                self._measure()
            self._lease.report_all()  # messages and output, which the call that ends the job does not carry
            self._succeed()
        except LeaseLost as error:
            LOG.warning("job %s: lease lost: %s", self._held.job_id, error)
        except CancelRequested:
            self._end(lambda: self._registry.cancelled(self._held, self._lease.unreported()))
        except Stopped as stopped:
            self._release(str(stopped))
        except Killed as error:
            self._killed(str(error))
        except JobFailure as failure:
            self._fail(failure)
        except OSError as error:  # our own files: a full disk, most likely
            self._fail(from_exception(error) or JobFailure("TRAINING_ERROR", str(error)))

    def _run_stages(self, spec: RunSpec) -> None:
        spec.save(self._folder.asked)
        self._hosts = self._find_hosts(spec)
        spec = fitted(spec, *(self._hosts.room if self._hosts else this_machine(num_cores())))
        self._keep_every = spec.config.keep_every_steps
        when_there_is_room(lambda: spec.save(self._folder.run), self._lease.keep)
        env = environment(spec.job_id, spec.fencing_token, spec.config.layout)
        self._run_stage(prepare_command(self._folder.path), env)
        try:
            with Trackers(self._folder, spec.fencing_token, env, self._lease.say) as trackers:
                while self._train(spec, env, trackers):
                    pass
                trackers.finish(self._lease.keep)
            self._measure()
        finally:
            if self._hosts:
                self._lease.end_processes()

    def _measure(self) -> None:
        """Measure by the suite that the job names, if it does; on this machine, wherever the ranks ran.

        What goes wrong behind training is an event: the version that was trained is there.
        """
        spec = self._held.evaluation
        if spec is None:
            return
        when_there_is_room(lambda: spec.save(self._folder.evaluation), self._lease.keep)
        self._watchdog.start()
        try:
            if isinstance(spec, HarnessSpec):  # whose steps take as long as the gateway does
                self._run_stage(harness_command(self._folder.path), marked(spec.job_id, spec.fencing_token))
                return
            env = environment(spec.job_id, spec.fencing_token, Layout())
            self._run_stage(evaluate_command(self._folder.path), env, self._check_for_steps, gpus=default_gpu())
        except (JobFailure, Killed) as error:
            if not spec.follows_training:
                raise
            self._lease.say(f"not measured by {spec.suite}: {error}; `anthesis evaluations run` can still do so")

    def _run_one(self, spec: OneProcess) -> None:
        """A job of one process, without ranks."""
        when_there_is_room(lambda: spec.save(self._folder.run), self._lease.keep)
        command = _COMMANDS[type(spec)]
        self._run_stage(command(self._folder.path), marked(spec.job_id, spec.fencing_token))
        self._lease.report()

    def _train(self, spec: RunSpec, env: dict[str, str], trackers: Trackers) -> bool:
        """Whether the ranks are to be started again, to go on from an earlier checkpoint. Raises Stopped."""

        def check() -> None:
            trackers.check()
            self._check_for_steps()

        self._watchdog.start()
        if self._hosts:
            self._run_on(self._hosts.taken(spec.config.layout.num_ranks), check)
        else:
            layout = spec.config.layout
            self._run_stage(deepspeed_command(self._folder.path, layout), env, check, gpus=first_gpus(layout.num_ranks))
        end = EarlyEnd.take(self._folder.early_end(self._held.fencing_token))
        if end and not end.again:
            raise Stopped(end.reason)
        if end:
            self._lease.say(end.reason)
        return end is not None

    def _find_hosts(self, spec: RunSpec) -> Hosts | None:
        """The hosts that are ready; None where the worker has no hostfile: all ranks run here."""
        hostfile = os.environ.get(HOSTFILE_VARIABLE)
        if not hostfile:
            return None
        spec.save(self._folder.run)
        self._run_stage(find_command(self._folder, hostfile), marked(spec.job_id, spec.fencing_token))
        return Hosts.load(self._folder.hosts)

    def _run_on(self, hosts: Hosts, check: Callable[[], None]) -> None:
        self._hosts = hosts
        self._lease.say(str(hosts))
        token = self._held.fencing_token
        env = marked(self._held.job_id, token)
        command = runner_command(hosts, self._folder, token)
        with written_environment(self._folder, token, env):
            self._run_process(command, runner_environment(env), check)

    def _run_stage(
        self,
        command: list[str],
        env: dict[str, str],
        check: Callable[[], None] = lambda: None,
        gpus: Sequence[str] = (),
    ) -> None:
        """A stage that computes on this machine, on these of its GPUs."""
        with self._energy.running(gpus):
            self._run_process(command, env, check)

    def _run_process(self, command: list[str], env: dict[str, str], check: Callable[[], None]) -> None:
        process = start(command, env, self._folder.log, ROOT)
        try:
            code = self._watch(process, check)
        finally:
            kill_group(process)
        if code != 0:
            failure = JobFailure.load(self._folder.failure(self._held.fencing_token))
            told = how_it_died(self._hosts, self._folder, self._held.fencing_token) if self._hosts else ""
            raise failure or (Killed(told) if told else _how_it_died(code, self._folder.log))

    def _check_for_steps(self) -> None:
        """Raises Killed where the ranks hang, with what they were doing among the job's events."""
        if reason := self._watchdog.overdue():
            self._lease.say(f"{reason}; the ranks are stopped:\n{self._stacks()}")
            raise Killed(reason)

    def _stacks(self) -> str:
        """Of all ranks. A host that is gone takes a while to ask, in which the lease is kept."""
        job_id, hosts = self._held.job_id, self._hosts
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(stacks_on, hosts, self._folder, job_id) if hosts else pool.submit(stacks, job_id)
            while not asked.done():
                self._lease.keep()
                wait([asked], POLL_S)
        return asked.result()

    def _watch(self, process: "subprocess.Popen[bytes]", check: Callable[[], None]) -> int:
        """The exit code of a stage; until then the lease is kept."""
        while True:
            self._look_whether_to_stop()
            self._lease.keep()
            check()
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue

    def _look_whether_to_stop(self) -> None:
        """Have the ranks stop with a checkpoint where the worker or the job is to stop. Raises Stopped where there is
        nothing to save, and when it takes a worker that is told to stop too long.
        """
        if self._should_stop():
            self._ask_for_checkpoint(TOLD_TO_STOP)
            self._told_to_stop = self._told_to_stop or boot_clock()
            if boot_clock() - self._told_to_stop > stop_grace_s():
                raise Stopped(f"{TOLD_TO_STOP}; no checkpoint within {stop_grace_s():g} s")
        elif self._lease.pause_requested:
            self._ask_for_checkpoint("the job is to be paused")

    def _ask_for_checkpoint(self, reason: str) -> None:
        if self._has_asked_to_stop:
            return
        self._lease.report()  # with the newest steps
        if not self._watchdog.has_steps or self._held.spec is None:
            raise Stopped(reason)
        self._has_asked_to_stop = True
        with contextlib.suppress(OSError):  # a full disk, on which there would be no checkpoint
            write_whole(self._folder.pause(self._held.fencing_token), reason)

    def _succeed(self) -> None:
        measured = self._folder.measured(self._held.fencing_token)
        documents = measured.read_text() if measured.exists() else ""
        try:
            if self._held.spec is None:
                self._end(lambda: self._registry.measured(self._held, documents, self._lease.unreported()))
                return
            files = [(path, digest) for path, digest in json.loads(self._result().read_text())]
            self._end(lambda: self._registry.succeed(self._held, files, self._lease.unreported(), documents))
        except InvalidArgumentError as error:
            raise JobFailure("BAD_EXPORT", str(error)) from error

    def _result(self) -> Path:
        return self._folder.result(self._held.fencing_token)

    def _killed(self, reason: str) -> None:
        deaths = self._folder.count_fruitless_death()
        if deaths < MAX_FRUITLESS_DEATHS:
            self._release(f"RANK_DIED: {reason}")
            return
        remedy = "the machine may be out of memory: lower micro_batch, or checkpoint more often"
        self._fail(JobFailure("RANK_DIED", f"{deaths} times before a new checkpoint: {reason}; {remedy}"))

    def _release(self, reason: str) -> None:
        self._report_rest()
        self._end(lambda: self._registry.release(self._held, reason), ended=False)

    def _fail(self, failure: JobFailure) -> None:
        LOG.error("job %s: %s: %s", self._held.job_id, failure.code, failure.message)
        self._report_rest()
        self._end(lambda: self._registry.fail(self._held, failure, self._lease.unreported()))

    def _report_rest(self) -> None:
        """What the call that ends the attempt does not carry; should the lease be lost, that call says so."""
        with contextlib.suppress(LeaseLost, CancelRequested):
            self._lease.report_all()

    def _end(self, tell: Callable[[], None], *, ended: bool = True) -> None:
        """Tell the registry until it has heard, or has given the job away, or we are told to stop."""
        while True:
            try:
                tell()
                break
            except LOST as error:
                LOG.warning("job %s: not reported: %s", self._held.job_id, error)
                return
            except InvalidArgumentError:
                raise
            except AnthesisError as error:
                LOG.warning("job %s: the registry does not answer: %s", self._held.job_id, error)
                if self._should_stop():
                    return
                time.sleep(1)
        if ended:
            self._folder.drop_weights(self._keep_every)


def stop_grace_s() -> float:
    """How long a worker that is told to stop waits for a checkpoint: ANTHESIS_STOP_GRACE_SECONDS."""
    return float(os.environ.get("ANTHESIS_STOP_GRACE_SECONDS") or 20.0)


def _how_it_died(code: int, log: Path) -> Exception:
    if code == NO_ROOM_TO_SAY:
        return JobFailure("DISK_FULL", "no space left for the job's files, nor to say more; free some and submit again")
    # The launcher passes on its rank's status: -9 arrives as 247.
    signal_number = -code if code < 0 else 256 - code if code > 192 else 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 300))
        tail = file.read().decode(errors="replace").strip().splitlines()[-1:]
    how = f"killed by signal {signal_number}" if signal_number else f"ended with exit code {code}"
    return Killed(f"a process was {how}" if signal_number else f"a process {how}: {' '.join(tail)}")
