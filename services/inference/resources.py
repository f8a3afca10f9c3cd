"""What the machine gives an engine: device, number format, and room for the cache."""

from pathlib import Path

import torch

from bloom.checkpoint import Checkpoint
from bloom.int8 import Int8Weights
from bloom.tensor_reader import DTYPES
from services.inference.config import EngineConfig
from services.inference.host_memory import free_host_bytes

GIB = 1 << 30
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(config: EngineConfig) -> torch.device:
    """Raises ValueError when CUDA is asked for and there is none."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' but torch finds no CUDA device; use 'auto' or 'cpu'")
    return torch.device("cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda")


def choose_dtype(config: EngineConfig, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The float format to compute in. Raises ValueError for float16 on a CPU, which computes it in software."""
    if config.dtype == "float16" and device.type == "cpu":
        raise ValueError("dtype='float16' needs CUDA; use 'bfloat16', 'float32' or 'auto'")
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    stored = DTYPES[checkpoint.float_dtype]
    if device.type == "cuda" or (stored == torch.bfloat16 and _cpu_multiplies_bf16()):
        return stored
    return torch.float32


def choose_weights(config: EngineConfig, checkpoint: Checkpoint) -> Int8Weights | None:
    """How to keep the matrices; None: in the format to compute in."""
    if config.weights == "auto":
        return "int8" if checkpoint.quantized else None
    return "int8" if config.weights == "int8" else "int8_dynamic"


def _cpu_multiplies_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cache_bytes(config: EngineConfig, device: torch.device, *, step_bytes: int, num_sharing: int = 1) -> int:
    """Bytes for the key-value cache: a fraction of what is free beside the largest step, up to a cap.

    num_sharing: ranks that do the same with the same memory at this moment, this one included.
    """
    cap = config.max_kv_bytes or (16 * GIB if device.type == "cuda" else GIB)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_host_bytes()
    return max(0, min(cap, int((free // num_sharing - step_bytes) * config.kv_memory_fraction)))
