"""What DeepSpeed's ZeRO divides, made of a model, and put together again: stages look alike from outside, and so does
a run without ZeRO.
"""

from typing import Any

import deepspeed
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from services.trainer.config import TrainConfig
from services.trainer.loss import LanguageModelLoss
from services.trainer.precision import DTYPES
from services.trainer.ranks import Ranks
from services.trainer.saved_state import VALUE

OWN_STATE = "optimizer_state"  # attribute of a parameter that ZeRO has no part in


def partition(module: LanguageModelLoss, config: TrainConfig, ranks: Ranks) -> None:
    """Stage 3: leave in each replica its part of every weight; module by module they are gathered as they are used.

    Optimizers are built before: afterwards parameters are empty. The weights are rounded to the run's precision first,
    as DeepSpeed does in the other stages.
    """
    dtype = DTYPES[config.precision]
    deepspeed.zero.Init(
        module=module.to(dtype),
        data_parallel_group=ranks.grid.get_data_parallel_group(),
        config_dict_or_path=config.deepspeed(),
        dtype=dtype,
        mpu=ranks.grid,
    )
    # The head uses the embedding outside of its module.
    deepspeed.zero.register_external_parameter(module, module.model.word_embeddings.weight)


def initialize_state(engine: Any) -> None:
    """Make the optimizer's state, which the first step would make, and have each parameter's found."""
    if not engine.zero_optimization():
        engine.optimizer.initialize_state()
        for parameter, state in engine.optimizer.state.items():
            setattr(parameter, OWN_STATE, state)
        return
    optimizer = engine.optimizer.optimizer
    if engine.zero_optimization_stage() == 3:  # DeepSpeed lends the optimizer one part at a time
        for index, part in enumerate(engine.optimizer.fp32_partitioned_groups_flat):
            optimizer.initialize_state_of(optimizer.param_groups[engine.optimizer.sub_group_to_group_id[index]], part)
        return
    optimizer.initialize_state()
    # After the first step of the first group it would look, when the others have no state yet.
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of what the replicas have together."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def whole(parameter: nn.Parameter, key: str) -> Tensor:
    """VALUE, or the optimizer's `key`, of a trained parameter, in fp32; collective over the replicas."""
    if hasattr(parameter, OWN_STATE):
        own: Tensor = parameter.detach() if key == VALUE else getattr(parameter, OWN_STATE)[key]
        return own.clone()
    if key == VALUE:
        value: Tensor = safe_get_full_fp32_param(parameter)
    else:
        value = safe_get_full_optimizer_state(parameter, key)
    return value


def set_whole(parameter: nn.Parameter, key: str, value: Tensor) -> None:
    """VALUE, which the model computes with, too, or the optimizer's `key`; value: of the whole parameter, in fp32."""
    if hasattr(parameter, OWN_STATE):
        (parameter.data if key == VALUE else getattr(parameter, OWN_STATE)[key]).copy_(value)
    elif hasattr(parameter, "ds_tensor"):
        own = _own_part(parameter, value)
        if key == VALUE:
            parameter.ds_tensor.data.copy_(own)
            safe_set_local_fp32_param(parameter, own)
        else:
            safe_set_local_optimizer_state(parameter, own, key)
    elif key == VALUE:
        parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """Of this replica in stage 3: equal parts of the flat parameter, the last one padded."""
    size, group = parameter.ds_tensor.ds_numel, parameter.ds_process_group
    padded = F.pad(value.flatten(), (0, size * dist.get_world_size(group) - value.numel()))
    return padded.narrow(0, size * dist.get_rank(group), size)
