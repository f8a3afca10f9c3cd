"""Our checkpoint as Megatron-DeepSpeed's files for a layout: weights in bf16, and each rank's part of the optimizer."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors import SafetensorError
from torch import Tensor

from bloom.config import BloomConfig
from bloom.layout import Layout
from bloom.megatron import ROW_MULTIPLE, place
from bloom.parallel import Shard
from bloom.tensor_writer import new_folder
from bloom.tensors import EMBEDDING, expected_tensors
from services.trainer.megatron.files import model_name, optimizer_name
from services.trainer.megatron.states import parameter_name
from services.trainer.optimizer import ADAM_STATE
from services.trainer.saved_state import VALUE, SavedState

ALIGNMENT = 2  # numbers of each replica's part of a group: DeepSpeed's nccl_start_alignment_factor
DS_VERSION = "0.7.0"  # whose BF16_Optimizer wrote what we write


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage's part of one tensor-parallel rank, as Megatron has it."""

    saved: SavedState
    shard: Shard

    @property
    def config(self) -> BloomConfig:
        return self.saved.config

    def names(self) -> list[str]:
        """Canonical, as PyTorch walks through Megatron's modules; on the last stage the head comes first."""
        return [name for name in expected_tensors(self.config) if self.shard.holds(self.config, name)]

    def shape(self, name: str) -> tuple[int, ...]:
        rows, columns = self.shard.part(self.config, name)
        shape = expected_tensors(self.config)[name]
        height = _rows(self.config, self.shard) if name == EMBEDDING else len(range(*rows.indices(shape[0])))
        return (height,) if len(shape) == 1 else (height, len(range(*columns.indices(shape[1]))))

    def numel(self, name: str) -> int:
        return int(torch.Size(self.shape(name)).numel())

    def read(self, name: str, key: str) -> Tensor:
        """This rank's part, fp32; rows of the vocabulary's padding are zero."""
        shape = expected_tensors(self.config)[name]
        rows, columns = self.shard.part(self.config, name)
        if name == EMBEDDING:
            height = _rows(self.config, self.shard)
            rows = slice(height * self.shard.tp_rank, height * (self.shard.tp_rank + 1))
        first, last, _ = rows.indices(shape[0])
        left, right, _ = columns.indices(shape[1]) if len(shape) == 2 else (0, 1, 1)
        out = torch.zeros(self.shape(name))
        if last > first:
            out[: last - first] = self.saved.read(name, key, ((first, last), (left, right)))
        return out

    def groups(self) -> list[list[str]]:
        """Names of the optimizer's groups: matrices in two halves, which apex could not take at once, then the rest."""
        matrices = [name for name in self.names() if len(expected_tensors(self.config)[name]) == 2]
        half = len(matrices) // 2
        return [matrices[:half], matrices[half:], [name for name in self.names() if name not in matrices]]


def _rows(config: BloomConfig, shard: Shard) -> int:
    """Of a rank's embedding, as Megatron pads it."""
    return -(-config.vocab_size // (ROW_MULTIPLE * shard.tp_size)) * ROW_MULTIPLE


def to_theirs(source: Path, target: Path, layout: Layout) -> int:
    """Write the checkpoint `source` as theirs; return its step. One rank's file is in memory at a time.

    Raises ValueError where it is damaged, was not trained with AdamW, or the layout does not divide it.
    """
    saved = SavedState(source)
    _check_adam(saved, source)
    with new_folder(target, None) as folder:
        for pp_rank in range(layout.pp):
            for tp_rank in range(layout.tp):
                shard = Shard.of(saved.config, tp_rank=tp_rank, tp_size=layout.tp, pp_rank=pp_rank, pp_size=layout.pp)
                _write_rank(folder, Stage(saved, shard), layout, pp_rank)
    return saved.step


def _check_adam(saved: SavedState, source: Path) -> None:
    for name in expected_tensors(saved.config):
        try:
            for key in ADAM_STATE:
                saved.read(name, key, ((0, 1), (0, 1)))
        except (KeyError, SafetensorError):
            what = f"{source} holds no {' and '.join(ADAM_STATE)} of {name}"
            raise ValueError(f"{what}; only checkpoints of whole models that AdamW trains become Megatron's") from None


def _write_rank(folder: Path, stage: Stage, layout: Layout, pp_rank: int) -> None:
    tp_rank, mp_rank = stage.shard.tp_rank, pp_rank * layout.tp + stage.shard.tp_rank
    owned = [name for name in stage.names() if name != EMBEDDING or stage.shard.is_first()]
    for layer, names in groupby(owned, key=lambda name: place(stage.config, name)[0]):
        tensors = {place(stage.config, name)[1]: stage.read(name, VALUE).bfloat16() for name in names}
        torch.save(tensors, folder / f"layer_{layer:02d}-model_{tp_rank:02d}-model_states.pt")
    torch.save(_counters(stage, layout), folder / model_name(mp_rank))
    for dp_rank in range(layout.dp):
        state = {"optimizer_state_dict": _optimizer(stage, layout, dp_rank), "ds_version": DS_VERSION}
        torch.save(state, folder / optimizer_name(dp_rank, mp_rank))


def _counters(stage: Stage, layout: Layout) -> dict[str, Any]:
    shapes = [
        OrderedDict((parameter_name(stage.config, name), torch.Size(stage.shape(name))) for name in group)
        for group in stage.groups()
    ]
    return {
        "module": None,  # in the layers' files
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": shapes,
        "lr_scheduler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": stage.saved.step,
        "global_samples": 0,
        "dp_world_size": layout.dp,
        "mp_world_size": layout.tp * layout.pp,  # as many as there are files
        "ds_config": {},
        "ds_version": DS_VERSION,
        "iteration": stage.saved.step,
        "checkpoint_version": 3.0,  # of Megatron: rows of query_key_value are [heads, 3, head size]
    }


def _optimizer(stage: Stage, layout: Layout, dp_rank: int) -> dict[str, Any]:
    flats: dict[str, list[Tensor]] = {key: [] for key in (VALUE, *ADAM_STATE)}
    mappings, paddings = [], []
    for names in stage.groups():
        fragments, size, padding = _fragments(stage, names, layout.dp, dp_rank)
        mappings.append(OrderedDict((parameter_name(stage.config, name), address) for name, address, _ in fragments))
        paddings.append(padding if dp_rank == layout.dp - 1 else 0)
        for key, flat in flats.items():
            flat.append(torch.zeros(size))
            for name, address, first in fragments:
                part = stage.read(name, key).view(-1)[first : first + address.numel]
                flat[-1][address.start : address.start + address.numel] = part
    steps = stage.saved.optimizer_steps
    states = {
        group: {"step": steps, "exp_avg": flats["exp_avg"][group], "exp_avg_sq": flats["exp_avg_sq"][group]}
        for group in range(len(mappings))
    }
    # As BLOOM was trained, for our checkpoints do not say: Megatron sets the learning rate before each step.
    decays = [0.1] * (len(mappings) - 1) + [0.0]
    param_groups = [
        {"lr": 0.0, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay, "step": steps, "params": [group]}
        for group, decay in enumerate(decays)
    ]
    return {
        "clip_grad": 1.0,
        "base_optimizer_state": {"state": states, "param_groups": param_groups},
        "single_partition_of_fp32_groups": flats[VALUE],
        "group_paddings": paddings,
        "partition_count": [layout.dp] * len(mappings),
        "ds_version": DS_VERSION,
        "param_slice_mappings": mappings,
    }


def _fragments(
    stage: Stage, names: list[str], dp_size: int, dp_rank: int
) -> tuple[list[tuple[str, fragment_address, int]], int, int]:
    """(name, where in replica dp_rank's part of the group, first number of the parameter); the part's size; padding."""
    total = sum(stage.numel(name) for name in names)
    size = -(-total // (ALIGNMENT * dp_size)) * ALIGNMENT
    start, end = size * dp_rank, size * (dp_rank + 1)
    return list(_cut(stage, names, start, end)), size, size * dp_size - total


def _cut(stage: Stage, names: list[str], start: int, end: int) -> Iterator[tuple[str, fragment_address, int]]:
    """Those parameters that lie in [start, end) of the group, where its names' numbers are laid end to end."""
    position = 0
    for name in names:
        first, last = max(position, start), min(position + stage.numel(name), end)
        if first < last:
            yield name, fragment_address(last - first, first - start), first - position
        position += stage.numel(name)
