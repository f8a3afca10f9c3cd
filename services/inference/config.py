"""Settings of the worker and of its engines, read once from the environment."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")

DEVICES = ("auto", "cpu", "cuda")
WEIGHTS = ("auto", "int8", "int8_dynamic")
KV_DTYPES = ("auto", "float32", "bfloat16", "int8", "fp8")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """One engine process. 0 means: chosen at start, from the model and the machine."""

    device: str = "auto"  # cuda where there is one
    dtype: str = "auto"  # the checkpoint's, where the device can: resources.choose_dtype
    weights: str = "auto"  # as stored; int8; int8_dynamic: activations as well. What is stored in floats is quantized
    cpu_operators: bool = True  # on a CPU: bloom.cpu's, compiled once; false: plain torch
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))  # of the CPU's matrix products
    block_size: int = 16  # tokens per block of the cache
    max_batched_tokens: int = 512  # per step, decodes and chunked prefills together
    max_running: int = 32  # sequences in one step
    max_waiting: int = 256  # requests queued beyond those
    max_step_ms: float = 0.0  # while streams run prompts are cut so that a step takes no longer; 0: from measured steps
    max_sequence_tokens: int = 0  # prompt and output; 0: the larger of 2,048 and the model's training length
    kv_dtype: str = "auto"  # of the cache; auto: as the model computes; fp8 on CUDA alone
    alibi_tolerance: float | None = None  # of a softmax's mass, left out with far blocks; None: what rounding hides
    kv_memory_fraction: float = 0.5  # of the memory that model and largest step leave free
    max_kv_bytes: int = 0  # 0: 1 GiB on a CPU, 16 GiB on a GPU
    prefix_caching: bool = True
    batch_invariant: bool = False  # logits bitwise the same alone and among neighbours; on a CPU with cpu_operators
    tensor_parallel: int = 1  # ranks that share each layer; divides the heads
    pipeline_parallel: int = 1  # stages that share the layers
    ranks_address: str = ""  # host:port where ranks of other machines join; "": all ranks are started on this one
    logits_rows: int = 32  # of the (tokens, vocabulary) matrix that scoring holds at once

    def __post_init__(self) -> None:
        _check(self, "device", self.device in DEVICES, f"one of {', '.join(DEVICES)}")
        _check(self, "dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        _check(self, "weights", self.weights in WEIGHTS, f"one of {', '.join(WEIGHTS)}")
        _check(self, "kv_dtype", self.kv_dtype in KV_DTYPES, f"one of {', '.join(KV_DTYPES)}")
        host, _, port = self.ranks_address.rpartition(":")
        _check(self, "ranks_address", not self.ranks_address or (bool(host) and port.isdecimal()), "host:port")
        counts = ("threads", "block_size", "max_running", "max_waiting", "logits_rows")
        for name in (*counts, "tensor_parallel", "pipeline_parallel"):
            _check(self, name, getattr(self, name) >= 1, "1 or more")
        tolerance = self.alibi_tolerance
        _check(self, "alibi_tolerance", tolerance is None or 0 <= tolerance < 1, "at least 0 (none), below 1")
        for name in ("max_step_ms", "max_sequence_tokens", "max_kv_bytes"):
            _check(self, name, getattr(self, name) >= 0, "0 or more")
        _check(self, "max_batched_tokens", self.max_batched_tokens >= self.max_running, f"{self.max_running} or more")
        _check(self, "kv_memory_fraction", 0 < self.kv_memory_fraction <= 1, "above 0, at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerConfig:
    """One worker: a server and an engine process for each loaded model version."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    worker_id: str = ""  # "": host name and port
    advertised_address: str = ""  # what callers are told; "": the address it listens on
    heartbeat_s: float = 2.0
    unload_grace_s: float = 3.0  # calls still come this long after a version is no longer announced
    retry_s: float = 5.0  # before the second try of a failed load; doubled with each further one
    max_retry_s: float = 300.0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "WorkerConfig":
        """ANTHESIS_INFERENCE_<FIELD>, in capitals. Raises ValueError, naming the variable."""
        engine: dict[str, object] = {}
        for name, parse in _ENGINE_VARIABLES.items():
            text = env.get(f"ANTHESIS_INFERENCE_{name.upper()}")
            if text:
                engine[name] = _parse(name, text, parse)
        return cls(
            engine=EngineConfig(**engine),  # type: ignore[arg-type]
            worker_id=env.get("ANTHESIS_INFERENCE_WORKER_ID", ""),
            advertised_address=env.get("ANTHESIS_INFERENCE_ADVERTISED_ADDRESS", ""),
        )

    def identity(self, port: int) -> str:
        return self.worker_id or f"{socket.gethostname()}:{port}"


def _boolean(text: str) -> bool:
    return bool(("false", "true").index(text))


_ENGINE_VARIABLES: dict[str, Callable[[str], object]] = {
    "device": str,
    "dtype": str,
    "weights": str,
    "cpu_operators": _boolean,
    "batch_invariant": _boolean,
    "threads": int,
    "max_batched_tokens": int,
    "max_running": int,
    "max_waiting": int,
    "max_step_ms": float,
    "max_sequence_tokens": int,
    "kv_dtype": str,
    "alibi_tolerance": float,
    "kv_memory_fraction": float,
    "tensor_parallel": int,
    "pipeline_parallel": int,
    "ranks_address": str,
    "max_kv_bytes": int,
}


def _parse(name: str, text: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(text)
    except ValueError:
        raise ValueError(f"ANTHESIS_INFERENCE_{name.upper()}={text!r} cannot be read") from None


def _check(config: EngineConfig, name: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r} is out of range; use {allowed}")
