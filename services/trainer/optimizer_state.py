"""What the optimizer holds of a parameter in fp32, whichever of DeepSpeed's optimizers it is wrapped in."""

from typing import Any

from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor


class OptimizerState:
    """Of an engine's parameters. Where ZeRO divides it over replicas, reading is collective over them."""

    def __init__(self, engine: Any) -> None:
        self._is_divided = engine.zero_optimization()
        self._optimizer = engine.optimizer
        if not self._is_divided:
            self._optimizer.initialize_state()
            return
        # DeepSpeed finds a parameter's state after the first step of the first group, when the others have none yet.
        self._optimizer.optimizer.initialize_state()
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def value(self, parameter: Tensor) -> Tensor:
        """In the parameter's shape, fp32."""
        whole: Tensor = safe_get_full_fp32_param(parameter) if self._is_divided else parameter.detach().clone()
        return whole

    def get(self, parameter: Tensor, key: str) -> Tensor:
        """What the optimizer keeps as `key`, in the parameter's shape, fp32."""
        if self._is_divided:
            whole: Tensor = safe_get_full_optimizer_state(parameter, key)
            return whole
        kept: Tensor = self._optimizer.state[parameter][key]
        return kept.clone()

    def set_value(self, parameter: Tensor, value: Tensor) -> None:
        parameter.data.copy_(value)
        if self._is_divided:
            safe_set_full_fp32_param(parameter, value)

    def set(self, parameter: Tensor, key: str, value: Tensor) -> None:
        if self._is_divided:
            safe_set_full_optimizer_state(parameter, value, key)
        else:
            self._optimizer.state[parameter][key].copy_(value)
