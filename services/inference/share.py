"""One rank's part of a model: what it computes of each step. A single rank's part is the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bloom.checkpoint import open_checkpoint
from bloom.checkpoint_reader import CheckpointReader
from bloom.cpu import BLOCK_SIZE, CpuModel
from bloom.parallel import Shard
from services.inference.cache_size import CacheSize
from services.inference.config import EngineConfig
from services.inference.cpu_executor import CpuExecutor
from services.inference.resources import choose_device, choose_dtype, choose_weights, has_cpu_operators
from services.inference.step_batch import StepBatch

AllReduce = Callable[[Any], None]  # sums an array or tensor over the tensor-parallel ranks, in place


class Share(Protocol):
    """An Executor's step between the borders of one stage, on one of the ranks that share its layers.

    Those ranks call the same methods in the same order: within them they add up with `all_reduce`, given on loading.
    Rows are arrays where bloom.cpu computes, else tensors.
    """

    hidden_dtype: str  # of what `forward` takes and gives
    device: str  # "cpu" or "cuda"

    def max_blocks(self, *, num_sharing: int = 1) -> int:
        """Cache blocks there is room for; num_sharing: ranks that ask for their part of the same memory now."""

    def allocate(self, size: CacheSize) -> None:
        """Take the memory of the cache. Before any step."""

    def forward(self, batch: StepBatch, received: Any = None) -> Any:
        """(T, H) for the next stage, or (R, H) after the last LayerNorm; from the (T, H) of the stage before."""

    def logits(self, hidden: Any) -> Any:
        """(M, rows of this rank's head) fp32, on the last stage."""

    def close(self) -> None:
        """Nothing may be called afterwards."""


def load_share(model_dir: Path, config: EngineConfig, shard: Shard, all_reduce: AllReduce | None = None) -> Share:
    """Read this rank's part of a Hugging Face BLOOM folder. Raises ValueError, naming file, tensor or setting."""
    device = choose_device(config)
    checkpoint = open_checkpoint(model_dir)
    dtype, int8 = choose_dtype(config, device, checkpoint), choose_weights(config, checkpoint)
    has_operators = device == "cpu" and has_cpu_operators(config)
    if config.batch_invariant and device == "cpu" and not has_operators:
        raise ValueError(
            f"batch_invariant=True, but plain torch's results depend on the batch; have bloom.cpu's operators compute: "
            f"cpu_operators=True (now {config.cpu_operators}), block_size={BLOCK_SIZE} (now {config.block_size}) and a "
            "C++ compiler"
        )
    if has_operators:
        with CheckpointReader(model_dir) as reader:
            model = CpuModel(reader, weights=int8 or dtype, shard=shard, threads=config.threads, all_reduce=all_reduce)
        return CpuExecutor(model, config)
    from services.inference.torch_executor import load_torch_share  # a second and 200 MB that others do not need

    return load_torch_share(model_dir, config, shard, all_reduce, device=device, dtype=dtype, int8=int8)
