"""What made a version, kept in it as `training.json`: enough to run it again, and to say why it came out otherwise.

The recipe is what the job asked for with every default filled in; attempts are what was done on which machine.
`anthesis reproduce` reads both (services/registry/reproduction.py, anthesis/provenance.py).
"""

import hashlib
import json
import os
import platform
import subprocess
import tomllib
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from services.common.settings import ROOT
from services.trainer.config import RunSpec, TrainConfig
from services.trainer.folder import JobFolder
from services.trainer.prepare import Prepared

TRAINING_FILE = "training.json"
FORMAT = 1
LIBRARIES = ("torch", "deepspeed", "numpy", "tokenizers", "safetensors", "triton")  # those that decide numbers
SOURCES = ("bloom", "services/common", "services/trainer")
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")  # as /proc/cpuinfo has them


def note_attempt(folder: JobFolder, spec: RunSpec, first_step: int) -> None:
    """Write down where and how this attempt computes; rank 0's, once it knows the step that it goes on from."""
    line = {
        "first_step": first_step,
        "layout": str(spec.config.layout),
        "gradient_accumulation": spec.config.gradient_accumulation,
        "precision": spec.config.precision,
        "code": code(),
        "libraries": libraries(),
        "machine": machine(),
    }
    with folder.attempts.open("a") as file:
        file.write("\n" + json.dumps(line) + "\n")  # a killed attempt may have left half a line


def training_json(folder: JobFolder) -> str:
    """The record of a run that has done its last step."""
    asked, prepared = RunSpec.load(folder.asked), Prepared.load(folder.tokens)
    content: dict[str, Any] = {
        "format": FORMAT,
        "job": asked.job_id,
        "model_config": asked.model_config,
        "base": asked.base,
        "from_checkpoint": asked.from_job,
        "datasets": [asdict(dataset) for dataset in asked.datasets],
        "tokenizer_digest": asked.tokenizer_digest,
        "tokens": prepared.fingerprint,
        "total_steps": prepared.total_steps,
        "recipe": recipe(asked.config, prepared.total_steps),
        "lora": asked.config.lora and asdict(asked.config.lora),
        "attempts": contributing(_lines(folder.attempts), prepared.total_steps),
    }
    return json.dumps(content, indent=1) + "\n"


def recipe(config: TrainConfig, total_steps: int) -> dict[str, Any]:
    """TrainOptions with nothing left to a default, which another release may have changed."""
    values = asdict(config) | {"layout": str(config.layout)}
    del values["lora"]
    schedule = config.schedule(total_steps)
    if config.warmup_steps is None:
        values["warmup_samples"] = int(schedule.warmup)
    if schedule.warmup <= schedule.total:
        values["decay_samples"] = int(schedule.total)
    return {name: value for name, value in values.items() if value is not None}


def contributing(attempts: list[dict[str, Any]], total_steps: int) -> list[dict[str, Any]]:
    """Those whose steps are in the result, in order: an attempt's steps after the next one's first were done again."""
    kept: list[dict[str, Any]] = []
    end = total_steps
    for attempt in reversed(attempts):
        if attempt["first_step"] < end:
            kept.insert(0, attempt)
            end = attempt["first_step"]
    return kept


@cache
def code() -> dict[str, Any]:
    """The release, the git commit where there is one, and a digest of the sources, which tells changed ones too."""
    release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sha256 = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        sha256.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return {"release": release, "commit": _git_commit(), "sources": f"sha256:{sha256.hexdigest()}"}


def _git_commit() -> str:
    """ "" outside a git checkout."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | ({"cuda": str(torch.version.cuda)} if torch.cuda.is_available() else {})


def machine() -> dict[str, Any]:
    """Rank 0's."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "isa": " ".join([torch.backends.cpu.get_cpu_capability(), *_isa()]),
        "threads": torch.get_num_threads(),  # of each rank
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def _isa() -> list[str]:
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()  # x86; ARM
    return [flag for flag in ISA_FLAGS if flag in flags]


def _cpuinfo(key: str) -> str:
    """The first processor's value; "" where the system has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(dict(json.loads(line)))
        except ValueError:
            continue  # blank, or cut off by a kill
    return found
