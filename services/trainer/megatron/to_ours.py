"""Their checkpoint as a folder that `anthesis models import --with-state` takes: weights, and the state beside them."""

import hashlib
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from bloom.config import BloomConfig
from bloom.megatron import LayerFiles, place, to_hf
from bloom.tensor_writer import new_folder
from bloom.tensors import expected_tensors, header
from services.trainer.megatron.states import OptimizerStates
from services.trainer.optimizer import ADAM_STATE
from services.trainer.saved_state import MANIFEST, STATE_FOLDER, VALUE, stored_name

KEYS = (VALUE, *ADAM_STATE)


def to_ours(source: Path, target: Path, config: BloomConfig) -> int:
    """Write `target`; return the step at which `source` was written. One tensor is in memory at a time.

    Raises ValueError where files are missing, damaged or of another model, and where `target` holds files already.
    """
    states = OptimizerStates(source, config, LayerFiles.open(source, config).tp_size)
    with new_folder(target, source) as folder:
        to_hf(source, folder, config)
        _write_states(folder / STATE_FOLDER, states, config)
    return states.step


def _write_states(folder: Path, states: OptimizerStates, config: BloomConfig) -> None:
    folder.mkdir()
    files: dict[str, str] = {}
    for layer, names in groupby(expected_tensors(config), key=lambda name: place(config, name)[0]):
        path = folder / f"layer-{layer:05d}.safetensors"
        _write_state(path, {name: expected_tensors(config)[name] for name in names}, states)
        with path.open("rb") as file:
            files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = {
        "step": states.step,
        "optimizer_steps": states.optimizer_steps,
        "config": config.to_hf(),
        "fingerprint": "",  # of tokens that we have not seen
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _write_state(path: Path, shapes: dict[str, tuple[int, ...]], states: OptimizerStates) -> None:
    """Whole tensors, as a checkpoint's file has them."""
    entries = {stored_name(name, key): ("F32", shape) for name, shape in shapes.items() for key in KEYS}
    regions = {name: ((0, shape[0]), (0, shape[1] if len(shape) == 2 else 1)) for name, shape in shapes.items()}
    with path.open("wb") as file:
        file.write(header(entries, regions=json.dumps(regions)))
        for tensor in _tensors(shapes, states):
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _tensors(shapes: dict[str, tuple[int, ...]], states: OptimizerStates) -> Iterator[Tensor]:
    for name in shapes:
        for key in KEYS:
            yield states.read(name, key)
