"""The files of one job on this machine: `<data>/jobs/<job id>/`."""

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from services.trainer.files import write_whole
from services.trainer.retention import Retention, finished


@dataclass(frozen=True, slots=True)
class JobFolder:
    path: Path

    @property
    def run(self) -> Path:
        """The newest attempt's RunSpec."""
        return self.path / "run.json"

    @property
    def asked(self) -> Path:
        """The same as its job asks for it, before it was fitted to a smaller machine."""
        return self.path / "asked.json"

    @property
    def attempts(self) -> Path:
        """JSON lines: where and how each attempt computed (provenance.note_attempt)."""
        return self.path / "attempts.jsonl"

    @property
    def tokens(self) -> Path:
        """Where the token files lie and how many steps they make: prepare.Prepared."""
        return self.path / "tokens.json"

    @property
    def blend(self) -> Path:
        """Where a job that learns from a blend of corpora says so: windows.BlendSpec."""
        return self.path / "blend"

    @property
    def base(self) -> Path:
        """Fine-tuning: the base version's files."""
        return self.path / "base"

    @property
    def brought(self) -> Path:
        """The checkpoint of another job that the run begins with."""
        return self.path / "brought"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def precision(self) -> Path:
        """What the first attempt computed in, and so the others: train.settle_precision."""
        return self.path / "precision"

    @property
    def export(self) -> Path:
        """The finished model as a Hugging Face folder."""
        return self.path / "export"

    @property
    def cleaning(self) -> Path:
        """Text that is cleaned: what is read, what is done and what is left."""
        return self.path / "cleaning"

    @property
    def hub(self) -> Path:
        """An import: what of the hub is on its way into the store."""
        return self.path / "hub"

    @property
    def log(self) -> Path:
        """What the processes print."""
        return self.path / "train.log"

    @property
    def lease(self) -> Path:
        """Until when the worker holds the lease: past it the ranks end themselves. lease_file.LeaseFile."""
        return self.path / "lease"

    @property
    def progress(self) -> Path:
        """JSON lines that rank 0 writes, attempt after attempt."""
        return self.path / "progress.jsonl"

    @property
    def stop(self) -> Path:
        """While it is there nobody runs the job: whoever does stops with a checkpoint."""
        return self.path / "stop"

    @property
    def skips(self) -> Path:
        """Samples that are left out: skips.Skips."""
        return self.path / "skips.json"

    def pause(self, fencing_token: int) -> Path:
        """By which the worker asks the attempt's ranks to stop with a checkpoint; it says why."""
        return self.path / f"pause-{fencing_token}"

    def early_end(self, fencing_token: int) -> Path:
        """Why the ranks ended before the run's end: early_end.EarlyEnd."""
        return self.path / f"early-end-{fencing_token}.json"

    @property
    def validating(self) -> Path:
        """Touched by rank 0 while it validates, when no step comes."""
        return self.path / "validating"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files: `<data>/tensorboard/<job id>`, so that it shows all jobs side by side."""
        return self.path.parent.parent / "tensorboard" / self.path.name

    def tracked(self, name: str) -> Path:
        """How far a tracker has been told."""
        return self.path / f"tracked-{name}"

    def tracking_over(self, fencing_token: int) -> Path:
        """There once trackers are to send the rest and end."""
        return self.path / f"tracking-over-{fencing_token}"

    @property
    def hosts(self) -> Path:
        """The hosts that are ready for the newest attempt: hosts.Hosts."""
        return self.path / "hosts.json"

    @property
    def hostfile(self) -> Path:
        """DeepSpeed's, of the hosts that the newest attempt runs on."""
        return self.path / "hostfile"

    @property
    def host_deaths(self) -> Path:
        """How many ranks died on which host, in all attempts."""
        return self.path / "host_deaths.json"

    def environment(self, fencing_token: int) -> Path:
        """The variables of ranks on other hosts, while an attempt runs; secrets among them."""
        return self.path / f"environment-{fencing_token}.json"

    def energy(self, fencing_token: int, host: str = "*") -> Path:
        """What a host has used for the attempt so far: energy.HostEnergy."""
        return self.path / f"energy-{fencing_token}-{host}.json"

    def death(self, fencing_token: int) -> Path:
        """Which rank on the hosts ended badly first: guard.record."""
        return self.path / f"death-{fencing_token}.json"

    def failure(self, fencing_token: int) -> Path:
        return self.path / f"failure-{fencing_token}.json"

    def result(self, fencing_token: int) -> Path:
        """Paths and digests of the exported, uploaded files."""
        return self.path / f"result-{fencing_token}.json"

    @property
    def evaluation(self) -> Path:
        """What is to be measured: evaluation.EvaluationSpec or harness.spec.HarnessSpec."""
        return self.path / "evaluation.json"

    def measured(self, fencing_token: int) -> Path:
        """Digest of what a suite's texts took, or its questions scored; absent until that is known."""
        return self.path / f"measured-{fencing_token}"

    def count_fruitless_death(self) -> int:
        """Note that an attempt was killed; return how many were since the newest checkpoint."""
        newest = next((path.name for path in finished(self.checkpoints)), "")
        path = self.path / "deaths.json"
        count = json.loads(path.read_text()).get(newest, 0) + 1 if path.exists() else 1
        with contextlib.suppress(OSError):  # on a full disk the next attempt waits for room anyway
            write_whole(path, json.dumps({newest: count}))
        return count

    def drop_weights(self, keep_every: int = 0) -> None:
        """Remove what only an unfinished job needs; logs, progress and checkpoints kept for good stay."""
        checkpoints = finished(self.checkpoints)
        surplus = Retention(last=0, every=keep_every).surplus(checkpoints)
        unfinished = [*self.checkpoints.glob("*.building")]
        everything = [self.checkpoints] if len(surplus) == len(checkpoints) else [*surplus, *unfinished]
        for folder in (*everything, self.export, self.base, self.brought, self.cleaning, self.hub):
            shutil.rmtree(folder, ignore_errors=True)
