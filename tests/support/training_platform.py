"""What a training job needs, as real processes that tests may kill: Valkey, registry, relay, trainer worker.

A dead process comes back only when a test starts it again, as the supervisor would.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import grpc
from anthesis.channel import open_channel
from anthesis.errors import from_rpc
from anthesis.jobs import Spec
from anthesis.v1 import job_pb2, job_pb2_grpc, registry_pb2, registry_pb2_grpc

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.folder import JobFolder
from services.trainer.processes import JOB_VARIABLE
from services.trainer.progress import Progress
from services.trainer.provenance import TRAINING_FILE
from tests.support.hosts import GATEWAY, Host, free_port
from tests.support.postgres import PostgresServer
from tests.support.registry_server import RegistryProcess, platform_env, test_platform
from tests.support.tokenizers import small_tokenizer_json
from tests.support.training import jsonl

LEASE_S = 6
ENDED = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
WORKER = "-A services.trainer.worker worker -Q train -P prefork -c 1 --prefetch-multiplier 1 --loglevel INFO"


class TrainingPlatform:
    """`with TrainingPlatform(folder) as platform`; `folder` must have a short path (a Unix socket lies in it)."""

    def __init__(
        self,
        data_dir: Path,
        *,
        mistake: str = "",
        has_worker: bool = True,
        worker_on: Host | None = None,
        postgres: PostgresServer | None = None,
        also: Sequence[str] = (),
        **env: str,
    ) -> None:
        """mistake: of mutated_training, which the worker's ranks make. worker_on: a host of tests.support.hosts.
        postgres: the database's server, which is then a process like the others. also: further services, "gateway", ….
        env: variables of all processes.
        """
        changes = {"registry_address": f"{GATEWAY}:{free_port()}"} if worker_on else {}
        self._postgres = postgres
        if postgres:
            changes["database_url"] = postgres.url(postgres.create_database())
        self.settings = test_platform(data_dir, **changes)
        prefix = worker_on.enter() if worker_on else []
        (data_dir / "run").mkdir(parents=True, exist_ok=True)
        self._socket = data_dir / "run" / "valkey.sock"
        fast = {"ANTHESIS_LEASE_SECONDS": str(LEASE_S), "ANTHESIS_WAKE_AGAIN_SECONDS": "5", "OMP_NUM_THREADS": "1"}
        fast |= {"ANTHESIS_HANG_SECONDS": "30"} | env
        self.environment = platform_env(self.settings) | fast
        self._registry = RegistryProcess(self.settings, **fast)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        python = [sys.executable, "-m"]
        self._commands = {
            "valkey": [*python, "infra.local.valkey"],
            "relay": [*python, "services.registry.relay"],
        }
        self._commands |= {name: [*python, f"services.{name}.server"] for name in also}
        if has_worker:
            program = ["tests.support.mutated_worker", mistake] if mistake else ["celery"]
            self._commands["worker"] = [*prefix, *python, *program, *WORKER.split()]
        self.store = ArtifactStore(self.settings.artifacts_url, data_dir / "cache" / "test")
        channel = open_channel(self.settings.registry_address, self.settings.read_key("admin", {}))
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.registry = registry_pb2_grpc.RegistryServiceStub(channel)
        self.tokenizer_digest = self.store.write_bytes(small_tokenizer_json().encode())

    def __enter__(self) -> Self:
        for name in self._commands:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._registry.kill()

    def log_path(self, name: str) -> Path:
        return self.settings.data_dir / f"{name}.log"

    def start(self, name: str, **env: str) -> None:
        """Start a process that is not running: "valkey", "relay", "worker", "registry", "postgres" or one of `also`.

        env: further variables.
        """
        if name == "registry":
            self._registry.restart()
            return
        if name == "postgres":
            assert self._postgres
            self._postgres.start()
            return
        with self.log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self._commands[name], env=self.environment | env, cwd=ROOT, stdout=log, stderr=log
            )
        if name == "valkey":
            wait_for(self._valkey_answers, 20, "Valkey to answer")

    def _valkey_answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._socket))
            return True
        return False

    def pid(self, name: str) -> int:
        return (self._registry.process if name == "registry" else self._processes[name]).pid

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL, timeout_s: float = 60) -> None:
        """Send a signal and wait for the process to end."""
        if name == "postgres":
            assert self._postgres
            self._postgres.kill()
            return
        process = self._registry.process if name == "registry" else self._processes[name]
        process.send_signal(how)
        process.wait(timeout_s)

    def ended(self) -> list[str]:
        """The processes, but registry and postgres, that do not run."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def wait(self, name: str, timeout_s: float) -> int:
        """The exit code of a process that ends of itself."""
        return self._processes[name].wait(timeout_s)

    def dataset(self, name: str, rows: Sequence[dict[str, object]]) -> str:
        form = "TEXT" if "text" in rows[0] else "MULTITASK" if "inputs" in rows[0] else "FIELDS"
        return self.create_dataset(name, form, jsonl(rows))

    def create_dataset(self, name: str, form: str, content: bytes) -> str:
        self.registry.CreateDataset(
            registry_pb2.CreateDatasetRequest(
                name=name,
                format=registry_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{form}"),
                digest=self.store.write_bytes(content),
            )
        )
        return name

    def submit(
        self,
        spec: Spec,
        deploy_alias: str = "",
    ) -> str:
        fields = {spec.message_type.name: spec.name for spec in job_pb2.Job.DESCRIPTOR.oneofs_by_name["spec"].fields}
        field = fields[type(spec).__name__]
        request = job_pb2.CreateJobRequest(**{field: spec}, deploy_alias=deploy_alias)
        return str(self.jobs.CreateJob(request).job.id)

    def job(self, job_id: str) -> job_pb2.Job:
        """The job now; waits out a registry that is just being restarted."""
        return self.jobs.GetJob(job_pb2.GetJobRequest(id=job_id), timeout=30, wait_for_ready=True).job

    def wait_until_ended(self, job_id: str, timeout_s: float = 300) -> job_pb2.Job:
        wait_for(lambda: self.job(job_id).state in ENDED, timeout_s, f"job {job_id} to end", self.say_why)
        return self.job(job_id)

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self.settings.data_dir / "jobs" / job_id)

    def last_step(self, job_id: str, *, since: float = 0.0) -> int:
        """The newest step that rank 0 has written down, unless it was before the Unix time `since`: then 0."""
        path = self.folder(job_id).progress
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last may still be written
        newest = next((json.loads(line)["progress"] for line in reversed(lines) if b'"progress"' in line), None)
        return Progress.from_json(newest).step if newest and newest["time"] > since else 0

    def last_checkpoint(self, job_id: str) -> int:
        """The step of the newest checkpoint; 0 when there is none."""
        found = self.folder(job_id).checkpoints.glob("step-????????")
        return max((int(path.name.removeprefix("step-")) for path in found), default=0)

    def wait_for_step(self, job_id: str, step: int, timeout_s: float = 120, *, since: float = 0.0) -> None:
        """Until `step` is done, after the Unix time `since`."""
        wait_for(lambda: self.last_step(job_id, since=since) >= step, timeout_s, f"step {step}", self.say_why)

    def events(self, job_id: str) -> list[job_pb2.JobEvent]:
        """All events of an ended job."""
        request = job_pb2.WatchJobRequest(id=job_id)
        return [response.event for response in self.jobs.WatchJob(request, timeout=30)]

    def ranks(self, job_id: str) -> list[int]:
        """Pids of the job's ranks."""
        return [
            pid
            for pid, command in processes_of(job_id)
            if "services.trainer.train" in command and "launch" not in command
        ]

    def launcher(self, job_id: str) -> int:
        """Pid of the process that started the job's ranks."""
        return next(pid for pid, command in processes_of(job_id) if "deepspeed.launcher.launch" in command)

    def files(self, job_id: str) -> dict[str, str]:
        """Path -> digest of what an ended job has made, without what tells of the job, such as training.json."""
        request = registry_pb2.GetModelVersionRequest(name=self.job(job_id).model_version)
        files = self.registry.GetModelVersion(request).version.files
        return {file.path: file.digest for file in files if not file.carried and file.path != TRAINING_FILE}

    def say_why(self) -> str:
        logs = [self.log_path("relay"), self.log_path("worker"), *self.settings.data_dir.glob("jobs/*/train.log")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in logs if path.exists())


def processes_of(job_id: str) -> list[tuple[int, str]]:
    """(pid, command line) of this machine's processes that work for the job."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"{JOB_VARIABLE}={job_id}\0".encode() in (entry / "environ").read_bytes():
                    found.append((int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")))
    return found


def reports(events: Sequence[job_pb2.JobEvent]) -> list[job_pb2.TrainingProgress]:
    """The reported steps in order. One sent twice, because nobody heard that it had arrived, counts once."""
    found = {}
    for event in events:
        if event.WhichOneof("event") == "progress":
            found.setdefault((event.progress.step, event.progress.time.ToNanoseconds()), event.progress)
    return list(found.values())


def longest_silence_s(events: Sequence[job_pb2.JobEvent]) -> float:
    """The longest time in which no step reached the registry, between the first and the last that did."""
    times = [event.time.ToNanoseconds() / 1e9 for event in events if event.WhichOneof("event") == "progress"]
    return max(after - before for before, after in pairwise(times))


def losses_by_step(events: Sequence[job_pb2.JobEvent]) -> dict[int, float]:
    """Each step's loss; asserts that a step done twice gave the same loss both times."""
    losses: dict[int, float] = {}
    for report in reports(events):
        step, loss = report.step, report.loss
        assert losses.setdefault(step, loss) == loss, f"step {step}: {losses[step]}, then {loss}"
    return losses


def messages(events: Sequence[job_pb2.JobEvent]) -> list[str]:
    return [event.message for event in events if event.WhichOneof("event") == "message"]


def wait_for(
    condition: Callable[[], bool], timeout_s: float, what: str, say_why: Callable[[], str] = lambda: ""
) -> None:
    """Return when `condition` holds; raises TimeoutError with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():
                return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise from_rpc(error) from error
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}\n{say_why()}")
        time.sleep(0.05)
