"""One op per file: a Triton kernel and its launcher; the plain twins are in naive/. Dispatch is by device."""

import importlib
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from . import naive

P = ParamSpec("P")
R = TypeVar("R")

# Not named like their function: importing a submodule would hide it here.
_FILES = {
    "paged_decode_attention": "decode_attention",
    "paged_prefill_attention": "prefill_attention",
    "store_kv": "kv_store",
    "layer_norm": "row_norm",
    "add_layer_norm": "residual_norm",
    "bias_gelu": "gelu",
    "linear": "invariant_linear",
    "int8_linear": "quantized_linear",
    "penalize": "penalties",
    "sample": "sampling",
}


def _by_device(twin: Callable[P, R]) -> Callable[P, R]:
    """The twin, and on CUDA the launcher of the same name."""

    @wraps(twin)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        if not first.is_cuda:
            return twin(*args, **kwargs)
        with torch.cuda.device(first.device):  # triton launches on the current device
            return launcher(twin)(*args, **kwargs)

    return dispatch


def launcher(twin: Callable[P, R]) -> Callable[P, R]:
    """The Triton launcher of a twin. Imported here, so that a machine without CUDA needs no triton."""
    found: Callable[P, R] = getattr(importlib.import_module(f"{__name__}.{_FILES[twin.__name__]}"), twin.__name__)
    return found


paged_decode_attention = _by_device(naive.paged_decode_attention)
paged_prefill_attention = _by_device(naive.paged_prefill_attention)
store_kv = _by_device(naive.store_kv)
layer_norm = _by_device(naive.layer_norm)
add_layer_norm = _by_device(naive.add_layer_norm)
bias_gelu = _by_device(naive.bias_gelu)
linear = _by_device(naive.linear)
int8_linear = _by_device(naive.int8_linear)
penalize = _by_device(naive.penalize)
sample = _by_device(naive.sample)
