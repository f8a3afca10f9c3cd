"""What the machine gives an engine: device, number format, and room for the cache. Torch only where there is a GPU."""

import logging
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bloom.checkpoint import Checkpoint
from bloom.cpu import BLOCK_SIZE, CannotBuild, load_library
from services.inference.config import EngineConfig
from services.inference.host_memory import free_host_bytes

if TYPE_CHECKING:
    from bloom.int8 import Int8Weights

log = logging.getLogger(__name__)

GIB = 1 << 30
_FORMATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' names, and torch's
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, either under Windows


def choose_device(config: EngineConfig) -> str:
    """Of what kind: "cpu" or "cuda". Raises ValueError when CUDA is asked for and there is none."""
    has_cuda = config.device != "cpu" and _has_cuda()
    if config.device == "cuda" and not has_cuda:
        raise ValueError("device='cuda' but torch finds no CUDA device; use 'auto' or 'cpu'")
    return "cuda" if has_cuda else "cpu"


def _has_cuda() -> bool:
    """Importing torch takes a second and 200 MB, so it is asked only where a driver is."""
    if not any(Path(file).exists() for file in _GPU_FILES):
        return False
    import torch

    return torch.cuda.is_available()


def choose_dtype(config: EngineConfig, device: str, checkpoint: Checkpoint) -> str:
    """The float format to compute in. Raises ValueError for float16 on a CPU, which computes it in software."""
    if config.dtype == "float16" and device == "cpu":
        raise ValueError("dtype='float16' needs CUDA; use 'bfloat16', 'float32' or 'auto'")
    if config.dtype != "auto":
        return config.dtype
    stored = _FORMATS[checkpoint.float_dtype]
    if device == "cuda" or (stored == "bfloat16" and (has_cpu_operators(config) or _cpu_multiplies_bf16())):
        return stored
    return "float32"


def choose_weights(config: EngineConfig, checkpoint: Checkpoint) -> "Int8Weights | None":
    """How to keep the matrices; None: in the format to compute in."""
    if config.weights == "auto":
        return "int8" if checkpoint.quantized else None
    return "int8" if config.weights == "int8" else "int8_dynamic"


def has_cpu_operators(config: EngineConfig) -> bool:
    """Whether bloom.cpu computes: it is wanted, has blocks of one size, and needs a compiler once."""
    return config.cpu_operators and config.block_size == BLOCK_SIZE and _operators_load()


@cache
def _operators_load() -> bool:
    try:
        load_library()
    except CannotBuild as error:
        log.warning("computing in plain torch, which is several times slower: %s", error)
        return False
    return True


def _cpu_multiplies_bf16() -> bool:
    """In torch. Our operators take bf16 weights, exact as they are, to fp32 activations where it cannot be."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cache_bytes(config: EngineConfig, device: str, *, step_bytes: int, num_sharing: int = 1) -> int:
    """Bytes for the key-value cache: a fraction of what is free beside the largest step, up to a cap.

    num_sharing: ranks that do the same with the same memory at this moment, this one included.
    """
    cap = config.max_kv_bytes or (16 * GIB if device == "cuda" else GIB)
    free = _free_cuda_bytes() if device == "cuda" else free_host_bytes()
    return max(0, min(cap, int((free // num_sharing - step_bytes) * config.kv_memory_fraction)))


def _free_cuda_bytes() -> int:
    """Of this process's device."""
    import torch

    return torch.cuda.mem_get_info()[0]


def cuda_name() -> str:
    """What its maker calls this process's device."""
    import torch

    return torch.cuda.get_device_name()
