"""The planner's memory beside what the trainer's ranks hold at their peak: `python -m benchmarks.plan_memory`.

Each layout is trained for a few steps as a job would be, one process per rank; the kernel says what each held at most.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bloom.cluster import named_cluster
from bloom.config import BloomConfig
from bloom.layout import Layout
from bloom.memory import Run, peak_memory
from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.config import DatasetSpec, RunSpec, TrainConfig
from services.trainer.folder import JobFolder
from services.trainer.launch import deepspeed_command, environment, prepare_command
from services.trainer.lease_file import write_lease

MODEL = BloomConfig(hidden_size=512, n_layer=8, n_head=8, vocab_size=16_384)
CONFIG = TrainConfig(steps=3, sequence_length=256, micro_batch=4, learning_rate=1e-4, warmup_steps=1)
RANK_MODULE = "services.trainer.train"
POLL_S = 0.2
# The C library then gives back what is freed; left alone it keeps some, more or less of it from run to run.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(256 << 10), "MALLOC_TRIM_THRESHOLD_": str(256 << 10)}
TEXT = "All human beings are born free and equal in dignity and rights. "


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    layout: str
    precision: str
    measured: int  # bytes of the rank that held most, at its peak
    planned: int

    @property
    def deviation(self) -> float:
        """The plan over what was measured, less 1."""
        return self.planned / self.measured - 1


def compare(config: TrainConfig, model: BloomConfig = MODEL) -> Comparison:
    """Train `model` for config's steps in processes of their own. Raises RuntimeError with the log's end."""
    with tempfile.TemporaryDirectory(prefix="an-") as folder:
        measured = peak_rss(make_job(Path(folder), config, model), config.layout)
    run = Run(
        layout=config.layout,
        global_batch=config.global_batch,
        micro_batch=config.micro_batch,
        seq_length=config.sequence_length,
        precision=config.precision,
        checkpointing=config.recompute,
        sequence_parallel=True,
        zero=config.zero,
    )
    _, planned = peak_memory(model, run, named_cluster("this-machine"))
    return Comparison(
        layout=str(config.layout), precision=config.precision, measured=max(measured), planned=planned.total
    )


def peak_rss(folder: JobFolder, layout: Layout) -> list[int]:
    """Most bytes that each rank of a prepared job was resident with."""
    env = environment("job", 1, layout) | {"OMP_NUM_THREADS": "1"} | RETURNING
    subprocess.run(prepare_command(folder.path), env=env, cwd=ROOT, check=True, capture_output=True)
    peaks: dict[int, int] = {}
    with tempfile.TemporaryFile("w+") as log:
        command = deepspeed_command(folder.path, layout)
        launcher = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        while launcher.poll() is None:
            for pid in _ranks(launcher.pid):
                peaks[pid] = max(peaks.get(pid, 0), _high_water(pid))
            time.sleep(POLL_S)
        if launcher.returncode:
            log.seek(0)
            raise RuntimeError(f"exit {launcher.returncode}: {log.read()[-4000:]}")
    return list(peaks.values())


def _ranks(group: int) -> Iterable[int]:
    """Processes of a launcher's group that are ranks."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != group:
            try:
                if os.getpgid(int(entry.name)) == group and RANK_MODULE in (entry / "cmdline").read_text():
                    yield int(entry.name)
            except (OSError, ProcessLookupError):
                continue


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def make_job(data_dir: Path, config: TrainConfig, model: BloomConfig) -> JobFolder:
    """A pre-training job on repeated text, ready to prepare."""
    store = ArtifactStore(str(data_dir / "artifacts"), data_dir / "cache")
    rows = json.dumps({"text": TEXT * 200}) + "\n"
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    spec = RunSpec(
        job_id="job",
        attempt=1,
        fencing_token=1,
        config=config,
        datasets=(DatasetSpec(name="rows", format="text", digest=store.write_bytes(rows.encode())),),
        tokenizer_digest=store.write_bytes(tokenizer.to_str().encode()),
        model_config=json.dumps(model.to_hf()),
        data_dir=str(data_dir),
        artifacts_url=str(data_dir / "artifacts"),
    )
    folder = JobFolder(data_dir / "jobs" / "job")
    folder.path.mkdir(parents=True)
    spec.save(folder.run)
    spec.save(folder.asked)
    write_lease(folder.lease, spec.fencing_token, 3600)
    return folder


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.plan_memory", description=__doc__)
    made.add_argument("layouts", nargs="*", default=["1x1x1", "1x1x2"], help="TPxPPxDP")
    made.add_argument("--precision", choices=("bf16", "fp32"), nargs="+", default=["fp32", "bf16"])
    return made


def main() -> None:
    arguments = parser().parse_args()
    print("| layout | precision | measured, MB | planned, MB | |\n|---|---|---|---|---|")
    for layout in arguments.layouts:
        for precision in arguments.precision:
            config = dataclasses.replace(CONFIG, layout=Layout.parse(layout), precision=precision)
            found = compare(config)
            sizes = f"{found.measured / 1e6:,.0f} | {found.planned / 1e6:,.0f}"
            print(f"| {found.layout} | {found.precision} | {sizes} | {found.deviation:+.0%} |", flush=True)


if __name__ == "__main__":
    main()
