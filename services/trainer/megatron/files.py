"""The files of a Megatron-DeepSpeed checkpoint: their names, and reading them without running what they hold."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

OPTIMIZER_FILE = re.compile(r"bf16_zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
MODEL_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
# Where a parameter's part lies in a flat tensor. The class moved: checkpoints have either name.
ADDRESS_NAMES = tuple(
    f"deepspeed.{module}.fragment_address" for module in ("utils.tensor_fragment", "runtime.bf16_optimizer")
)


class Inert:
    """Stands for an object of a class that is not ours to make: it keeps what it is given and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


def optimizer_name(dp_rank: int, mp_rank: int) -> str:
    return f"bf16_zero_pp_rank_{dp_rank}_mp_rank_{mp_rank:02d}_optim_states.pt"


def model_name(mp_rank: int) -> str:
    return f"mp_rank_{mp_rank:02d}_model_states.pt"


def load_optimizer(path: Path) -> dict[str, Any]:
    """A rank's optimizer state, its tensors mapped from the file and not read yet. Raises ValueError.

    Beside tensors and plain values it may hold fragment_address alone.
    """
    content = _load(path, [(fragment_address, name) for name in ADDRESS_NAMES])
    state = content.get("optimizer_state_dict")
    if not isinstance(state, dict) or "param_slice_mappings" not in state:
        what = "holds no state of DeepSpeed's BF16_Optimizer with param_slice_mappings"
        raise ValueError(f"{path} {what}; name a checkpoint that was trained in bf16 with ZeRO-1")
    return state


def load_counters(path: Path) -> dict[str, Any]:
    """What mp_rank_MM_model_states.pt says beside tensors. Raises ValueError.

    It holds Megatron's arguments and random states, too: whatever class those are of, an Inert is made in its place.
    """
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return _load(path, [(Inert, name) for name in names])


def _load(path: Path, known: list[Any]) -> dict[str, Any]:
    try:
        with safe_globals(known):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state by name; copy it again")
    return content


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0][:200]
    return ValueError(f"{path} is damaged, or holds more than an optimizer's state ({reason}); copy it again")
