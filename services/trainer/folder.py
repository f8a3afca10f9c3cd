"""The files of one job on this machine: `<data>/jobs/<job id>/`."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from services.trainer.files import write_whole


@dataclass(frozen=True, slots=True)
class JobFolder:
    path: Path

    @property
    def run(self) -> Path:
        """The newest attempt's RunSpec."""
        return self.path / "run.json"

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

    def death(self, fencing_token: int) -> Path:
        """Which rank on the hosts ended badly first: guard.record."""
        return self.path / f"death-{fencing_token}.json"

    def failure(self, fencing_token: int) -> Path:
        return self.path / f"failure-{fencing_token}.json"

    def result(self, fencing_token: int) -> Path:
        """Paths and digests of the exported, uploaded files."""
        return self.path / f"result-{fencing_token}.json"

    def count_fruitless_death(self) -> int:
        """Note that an attempt was killed; return how many were since the newest checkpoint."""
        newest = max((path.name for path in self.checkpoints.glob("step-*") if not path.suffix), default="")
        path = self.path / "deaths.json"
        count = json.loads(path.read_text()).get(newest, 0) + 1 if path.exists() else 1
        write_whole(path, json.dumps({newest: count}))
        return count

    def drop_weights(self) -> None:
        """Remove what only an unfinished job needs; logs and progress stay."""
        for folder in (self.checkpoints, self.export, self.base):
            shutil.rmtree(folder, ignore_errors=True)
