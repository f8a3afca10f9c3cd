"""What the engine asks for a step's hidden states and logits, and how that is loaded.

R = rows whose hidden states are needed, M = of these those with logits, H = hidden size, V = rows of the head
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bloom.checkpoint import open_checkpoint
from bloom.parallel import Shard
from services.inference.cache_size import CacheSize, size_cache
from services.inference.config import EngineConfig
from services.inference.resources import choose_device, choose_dtype, choose_weights, cuda_name
from services.inference.share import load_share
from services.inference.step_batch import StepBatch


class Executor(Protocol):
    """A model and its cache. One step is one `forward`, then `logits` of as many rows at a time as fit.

    Rows are NumPy arrays where bloom.cpu computes, which needs no torch; else tensors.
    """

    def forward(self, batch: StepBatch) -> Any:
        """Hidden states (R, H) after the last LayerNorm; the keys and values of all tokens go to the cache."""

    def logits(self, hidden: Any) -> Any:
        """(M, V) fp32 of rows (M, H) of what `forward` returned; to be read before the next call."""

    def close(self) -> None:
        """Let go of what outlives the process: nothing may be called afterwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedExecutor:
    executor: Executor
    size: CacheSize
    device: str  # for people
    weights: str  # their number format, for people


def load_executor(model_dir: Path, config: EngineConfig) -> LoadedExecutor:
    """Load a Hugging Face BLOOM folder on one rank or several, and make room for its cache.

    Raises ValueError, naming file, tensor or setting, when that cannot be.
    """
    checkpoint = open_checkpoint(model_dir)
    model, device = checkpoint.config, choose_device(config)
    executor = _load(model_dir, config, Shard.of(model))
    size = size_cache(model, config, room=executor.max_blocks())
    executor.allocate(size)
    return LoadedExecutor(
        executor=executor,
        size=size,
        device=f"cuda ({cuda_name()})" if device == "cuda" else "cpu",
        weights=choose_weights(config, checkpoint) or choose_dtype(config, device, checkpoint),
    )


def _load(model_dir: Path, config: EngineConfig, whole: Shard) -> Any:
    if config.tensor_parallel == config.pipeline_parallel == 1:
        return load_share(model_dir, config, whole)
    from services.inference.ranked_executor import RankedExecutor  # needs torch, for its collectives

    return RankedExecutor(model_dir, config)
