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


def _by_device(twin: Callable[P, R], file: str) -> Callable[P, R]:
    """The twin, and on CUDA the launcher of the same name in `file`."""

    @wraps(twin)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, Tensor)
        if not first.is_cuda:
            return twin(*args, **kwargs)
        # Imported here, so that a machine without CUDA needs no triton.
        launcher: Callable[P, R] = getattr(importlib.import_module(f"{__name__}.{file}"), twin.__name__)
        with torch.cuda.device(first.device):  # triton launches on the current device
            return launcher(*args, **kwargs)

    return dispatch


paged_decode_attention = _by_device(naive.paged_decode_attention, "decode_attention")
paged_prefill_attention = _by_device(naive.paged_prefill_attention, "prefill_attention")
store_kv = _by_device(naive.store_kv, "kv_store")
