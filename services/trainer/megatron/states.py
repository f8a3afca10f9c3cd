"""The optimizer's state out of all ranks' files, one whole tensor at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from bloom.config import BloomConfig
from bloom.megatron import EMBEDDING_LAYER, joined, place
from bloom.parallel import Shard
from bloom.tensors import expected_tensors
from services.trainer.megatron.files import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    load_counters,
    load_optimizer,
    model_name,
    optimizer_name,
)
from services.trainer.optimizer import ADAM_STATE
from services.trainer.saved_state import VALUE


@dataclass(frozen=True, slots=True)
class Fragment:
    """Part of a parameter, in one file's flat tensors of one group."""

    state: dict[str, Any]
    group: int
    address: fragment_address

    def read(self, key: str) -> Tensor:
        if key == VALUE:
            flat = self.state["single_partition_of_fp32_groups"][self.group]
        else:
            flat = self.state["base_optimizer_state"]["state"][self.group][key]
        end = self.address.start + self.address.numel
        return flat.detach()[self.address.start : end]  # type: ignore[no-any-return]


def parameter_name(config: BloomConfig, name: str) -> str:
    """What Megatron's pipeline calls the tensor `name` (canonical)."""
    layer, key = place(config, name)
    return f"tied_modules.embed.{key}" if layer == EMBEDDING_LAYER else f"{layer}.{key}"


class OptimizerStates:
    """Of a model of `config`, in a folder of tp_size tensor-parallel ranks' files. Files are mapped, not read."""

    def __init__(self, folder: Path, config: BloomConfig, tp_size: int) -> None:
        """Raises ValueError where files are missing, damaged or of another model."""
        self._folder = folder
        self._config = config
        self._tp_size = tp_size
        self._fragments: dict[tuple[str, int], list[Fragment]] = {}  # (their name, TP rank) -> in order
        first: dict[str, Any] = {}
        for mp_rank, dp_rank in self._ranks():
            state = load_optimizer(folder / optimizer_name(dp_rank, mp_rank))
            first = first or state
            self._add(state, stage=mp_rank // tp_size, tp_rank=mp_rank % tp_size)
        self.optimizer_steps = _optimizer_steps(first, folder)
        counters = load_counters(folder / model_name(0))
        self.step = int(counters.get("iteration") or counters.get("global_steps") or 0)
        if not self.step:
            raise ValueError(f"{folder / model_name(0)} does not say at which step it was written; copy it again")
        for name in expected_tensors(config):
            self._check_whole(name)

    def _ranks(self) -> list[tuple[int, int]]:
        """(MM, D) of every file."""
        found = {
            (int(match[2]), int(match[1]))
            for path in self._folder.iterdir()
            if (match := OPTIMIZER_FILE.fullmatch(path.name))
        }
        if not found:
            what = "holds no bf16_zero_pp_rank_D_mp_rank_MM_optim_states.pt"
            raise ValueError(f"{self._folder} {what}; python -m bloom.megatron converts weights alone")
        models = {int(match[1]) for path in self._folder.iterdir() if (match := MODEL_FILE.fullmatch(path.name))}
        num_mp, num_dp = 1 + max(models | {mp for mp, _ in found}), 1 + max(dp for _, dp in found)
        if num_mp % self._tp_size:
            what = f"{self._folder} has states of {num_mp} model-parallel ranks, which {self._tp_size} TP ranks"
            raise ValueError(f"{what} do not divide; copy all files")
        ranks = [(mp, dp) for mp in range(num_mp) for dp in range(num_dp)]
        if missing := [optimizer_name(dp, mp) for mp, dp in ranks if (mp, dp) not in found]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{missing[0]}{more} is missing in {self._folder}; copy all files")
        return ranks

    def _add(self, state: dict[str, Any], *, stage: int, tp_rank: int) -> None:
        for group, addresses in enumerate(state["param_slice_mappings"]):
            for name, address in addresses.items():
                # The last stage's copy of the embedding, its head, has the same state as the first's.
                if stage == 0 or not name.startswith("tied_modules."):
                    self._fragments.setdefault((name, tp_rank), []).append(Fragment(state, group, address))

    def _check_whole(self, name: str) -> None:
        theirs = parameter_name(self._config, name)
        for rank in range(self._tp_size):
            if (theirs, rank) not in self._fragments:
                what = f"{self._folder} holds no state of {theirs} of tensor-parallel rank {rank}"
                raise ValueError(f"{what}; it is of another model, check --config")

    def read(self, name: str, key: str) -> Tensor:
        """The whole tensor `name` (canonical) of fp32 values or of an optimizer's state. Raises ValueError."""
        shape = expected_tensors(self._config)[name]
        columns = Shard.of(self._config, tp_size=self._tp_size).part(self._config, name)[1]
        width = (columns.stop - columns.start if columns != slice(None) else shape[1]) if len(shape) == 2 else 1
        parts = []
        for rank in range(self._tp_size):
            fragments = self._fragments[parameter_name(self._config, name), rank]
            flat = torch.cat([fragment.read(key) for fragment in fragments])
            if flat.numel() % width:
                what = f"{key} of {parameter_name(self._config, name)} has {flat.numel()} numbers on rank {rank}"
                raise ValueError(f"{what}, which rows of {width} do not divide; check --config")
            parts.append(flat.view(-1, width) if len(shape) == 2 else flat)
        return joined(self._config, name, parts).float()


def _optimizer_steps(state: dict[str, Any], folder: Path) -> int:
    """Steps that Adam has done: PyTorch keeps them with the state, apex with the group."""
    adam = state["base_optimizer_state"]
    for kept in (*adam["state"].values(), *adam["param_groups"]):
        if "step" in kept:
            return int(kept["step"])
    raise ValueError(f"{folder}: the optimizer does not say how many steps it did; {' and '.join(ADAM_STATE)} need it")
