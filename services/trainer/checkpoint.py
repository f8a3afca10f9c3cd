"""Checkpoints that are whole or absent, and fit any layout: written aside while training goes on, checksummed, renamed.

Every rank writes one safetensors file: of the parameters it stands for, its region of the whole tensor in fp32 and of
the optimizer's state. A rank that reads takes the regions it needs out of all files, so any layout goes on from any
other's checkpoint. Schedule, data order and dropout are functions of the step: it is all the rest of the state.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from bloom.model import BloomModel
from services.trainer.config import Optimizer
from services.trainer.files import sync_folder, write_whole
from services.trainer.optimizer import state_keys
from services.trainer.optimizer_state import OptimizerState
from services.trainer.ranks import Ranks
from services.trainer.saved_state import MANIFEST, VALUE, Region, SavedState, region, stored_name

KEPT = 2  # newest checkpoints that stay
DONE = ".done"  # beside a rank's file: its digest, or why there is none
FAILED = "failed: "
POLL_S = 0.02


class Checkpoints:
    """Of one run, in `folder`; every method is collective over all ranks."""

    def __init__(
        self, folder: Path, engine: Any, model: BloomModel, optimizer: Optimizer, ranks: Ranks, fingerprint: str
    ) -> None:
        """model: cut to this rank's shard, as the engine trains it. fingerprint: of the tokens it is trained on."""
        self._folder = folder
        self._engine = engine
        self._optimizer: Optimizer = optimizer
        self._ranks = ranks
        self._config = model.config
        self._shard = ranks.shard(model.config)
        self._fingerprint = fingerprint
        self._state = OptimizerState(engine)
        self._writer: threading.Thread | None = None
        self._failed = ""
        self._parameters = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}

    def save(self, step: int) -> str:
        """Begin to write the state after `step` steps; training may go on at once. Returns what `finish` does, of the
        one before: one is written at a time.
        """
        failed_before = self.finish()
        target = self._folder / f"step-{step:08d}"
        building = self._folder / f"{target.name}.building"
        if dist.get_rank() == 0:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
        dist.barrier()
        regions, tensors = self._own_state()
        manifest = {
            "step": step,
            "optimizer_steps": self._engine.optimizer.param_groups[0]["step"],
            "config": self._config.to_hf(),
            "fingerprint": self._fingerprint,
        }
        arguments = (building, target, manifest, regions, tensors)
        self._writer = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._writer.start()
        return failed_before

    def finish(self) -> str:
        """Wait for what `save` began; why it failed, "" where it did not. What was there before is kept."""
        if self._writer is None:
            return ""
        self._writer.join()
        self._writer = None
        failed = [self._failed]  # rank 0 knows of all ranks
        dist.broadcast_object_list(failed, src=0)
        return failed[0]

    def _write(
        self,
        building: Path,
        target: Path,
        manifest: dict[str, Any],
        regions: dict[str, Region],
        tensors: dict[str, Tensor],
    ) -> None:
        """This rank's file, then rank 0 alone the checkpoint. In a thread: no collective, ranks meet in the folder."""
        rank = dist.get_rank()
        path = building / f"rank-{rank:05d}.safetensors"
        try:
            save_file(tensors, path, metadata={"regions": json.dumps(regions)})
            outcome = _synced_sha256(path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)  # or there may be no room to say so
            outcome = f"{FAILED}rank {rank}: {error}"
        tensors.clear()
        write_whole(path.with_suffix(DONE), outcome)
        if rank == 0:
            self._failed = _commit(building, target, manifest, dist.get_world_size())
            if not self._failed:
                for old in _steps(self._folder)[KEPT:]:
                    shutil.rmtree(old)

    def _own_state(self) -> tuple[dict[str, Region], dict[str, Tensor]]:
        """What this rank writes: its replicas have the same and share the work."""
        regions: dict[str, Region] = {}
        tensors: dict[str, Tensor] = {}
        owned = [name for name in self._parameters if self._shard.stands_for(self._config, name)]
        for index, name in enumerate(owned):
            parameter = self._parameters[name]
            values = {VALUE: self._state.value(parameter)}
            for key in state_keys(name, parameter, self._optimizer):
                values[key] = self._state.get(parameter, key)
            if index % self._ranks.grid.get_data_parallel_world_size() != self._ranks.dp_rank:
                continue
            regions[name] = region(self._config, self._shard, name, tuple(parameter.shape))
            num_rows = regions[name][0][1] - regions[name][0][0]  # without the vocabulary's padding
            for key, value in values.items():
                tensors[stored_name(name, key)] = value[:num_rows].cpu().contiguous()
        return regions, tensors

    def restore(self) -> int:
        """Load the newest whole checkpoint; return its step, 0 when there is none."""
        for folder in self._candidates():
            if self._is_whole(folder):
                return self._load(folder)
        return 0

    def _candidates(self) -> Iterator[Path]:
        """Checkpoints of these tokens, newest first, as rank 0 sees them."""
        found: list[Any] = [None]
        if dist.get_rank() == 0:
            found = [[path.name for path in _steps(self._folder) if self._is_ours(path)]]
        dist.broadcast_object_list(found, src=0)
        yield from (self._folder / name for name in found[0])

    def _is_ours(self, path: Path) -> bool:
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except (OSError, ValueError):
            return False
        told = manifest.get("fingerprint"), manifest.get("config")  # an older release's has no config
        return told == (self._fingerprint, self._config.to_hf())

    def _is_whole(self, path: Path) -> bool:
        """Whether all files are as they were written; each rank looks at some."""
        files = sorted(json.loads((path / MANIFEST).read_text())["files"].items())
        own = files[dist.get_rank() :: dist.get_world_size()]
        is_whole = all((path / name).exists() and _sha256(path / name) == digest for name, digest in own)
        answers: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(answers, is_whole)
        return all(answers)

    def _load(self, folder: Path) -> int:
        saved = SavedState(folder)
        for name, parameter in self._parameters.items():
            part = region(self._config, self._shard, name, tuple(parameter.shape))
            self._state.set_value(parameter, self._read(saved, name, VALUE, part, parameter))
            for key in state_keys(name, parameter, self._optimizer):
                self._state.set(parameter, key, self._read(saved, name, key, part, parameter))
        for group in self._engine.optimizer.param_groups:
            group["step"] = saved.optimizer_steps
        return saved.step

    def _read(self, saved: SavedState, name: str, key: str, part: Region, parameter: Tensor) -> Tensor:
        """As the parameter's shape, in fp32; the vocabulary's padding is zero."""
        value = parameter.new_zeros(parameter.shape, dtype=saved.dtype)
        value[: part[0][1] - part[0][0]] = saved.read(name, key, part)
        return value


def _commit(building: Path, target: Path, manifest: dict[str, Any], num_ranks: int) -> str:
    """Once all ranks have written, name the checkpoint what it is; else remove it and say why."""
    while len(done := sorted(building.glob(f"*{DONE}"))) < num_ranks:
        time.sleep(POLL_S)
    outcomes = {path.with_suffix(".safetensors").name: path.read_text() for path in done}
    failed = next((outcome.removeprefix(FAILED) for outcome in outcomes.values() if outcome.startswith(FAILED)), "")
    try:
        if not failed:
            (building / MANIFEST).write_text(json.dumps(manifest | {"files": outcomes}, indent=1))
            _synced_sha256(building / MANIFEST)
            for path in done:
                path.unlink()
            shutil.rmtree(target, ignore_errors=True)
            os.replace(building, target)
            sync_folder(target.parent)
    except OSError as error:
        failed = str(error)
    if failed:
        shutil.rmtree(building, ignore_errors=True)
    return failed


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix == ""), reverse=True)


def newest(folder: Path) -> Path:
    """The newest finished checkpoint."""
    return _steps(folder)[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced_sha256(path: Path) -> str:
    """Force a file to disk; its sha256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
