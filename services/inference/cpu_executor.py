"""The executor for CPUs: bloom.cpu's operators, a whole step in one call.

T = packed tokens, R = rows whose hidden states are needed, M = of these those with logits,
H = hidden size, V = rows of this rank's head
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bloom.cpu import CpuModel
from services.inference.cache_size import CacheSize, choose_kv_dtype
from services.inference.config import EngineConfig
from services.inference.host_memory import host_peak_bytes
from services.inference.resources import cache_bytes
from services.inference.step_batch import StepBatch

Rows = NDArray[np.float32]


class CpuExecutor:
    """An Executor where its shard is the whole model, else one rank's Share. `allocate` comes before any step."""

    def __init__(self, model: CpuModel, config: EngineConfig) -> None:
        self.hidden_dtype, self.device = "float32", "cpu"
        self._model = model
        self._config = config
        computed = "float32" if model.weights == "float32" else "bfloat16"
        self._kv_dtype = choose_kv_dtype(config, self.device, computed)

    def max_blocks(self, *, num_sharing: int = 1) -> int:
        """Blocks there is room for beside the largest step, which is run to see what it takes.

        num_sharing: ranks that ask the same of the same memory at this moment, this one included.
        """
        config = self._config
        rows = max(config.max_running, config.logits_rows)
        step_bytes = host_peak_bytes(lambda: self._model.try_step(config.max_batched_tokens, rows))
        free_bytes = cache_bytes(config, self.device, step_bytes=step_bytes, num_sharing=num_sharing)
        return free_bytes // self._model.block_bytes(self._kv_dtype)

    def allocate(self, size: CacheSize) -> None:
        self._model.allocate_cache(size.num_blocks, dtype=self._kv_dtype, tolerance=self._config.alibi_tolerance)

    def forward(self, batch: StepBatch, received: Any = None) -> Rows:
        """(T, H) fp32, on the last stage (R, H). `received`: (T, H) of the stage before, overwritten."""
        self._model.copy_blocks(batch.copies)
        return self._model.forward(
            batch.input_ids,
            batch.query_starts,
            batch.context_lens,
            batch.block_tables,
            None if received is None else np.asarray(received),  # the memory of a tensor, where it is one
            num_needed=batch.num_needed,
        )

    def logits(self, hidden: Any) -> Rows:
        """(M, V), to be read before the next call."""
        return self._model.logits(np.asarray(hidden))

    def close(self) -> None:
        self._model.close()
