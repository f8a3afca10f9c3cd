"""What the engine asks for a step's hidden states and logits, and the executor that torch alone gives.

T = packed tokens, M = rows whose logits are needed, H = hidden size, V = rows of the head
"""

from typing import Protocol

import torch
from torch import Tensor

from bloom.alibi import slopes
from bloom.model import BloomModel
from services.inference.attention import PagedAttention
from services.inference.kv_cache import CacheSize, KVCache
from services.inference.step_batch import StepBatch


class Executor(Protocol):
    """A model and its cache. One step is one `forward`, then `logits` of as many rows at a time as fit."""

    def forward(self, batch: StepBatch) -> Tensor:
        """Hidden states (T, H) after the last LayerNorm; the tokens' keys and values go to the cache."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) fp32 of rows (M, H) of what `forward` returned."""

    def close(self) -> None:
        """Let go of what outlives the process: nothing may be called afterwards."""


class TorchExecutor:
    """BloomModel with paged attention: on CUDA by kernels, elsewhere in plain torch."""

    def __init__(self, model: BloomModel, size: CacheSize) -> None:
        weight = model.word_embeddings.weight
        self._model = model
        self._device = weight.device
        self._cache = KVCache(model.config, size, dtype=weight.dtype, device=weight.device)
        self._slopes = torch.tensor(slopes(model.config.n_head), dtype=torch.float32, device=weight.device)

    @torch.inference_mode()
    def forward(self, batch: StepBatch) -> Tensor:
        self._cache.copy_blocks(batch.copies)
        attend = PagedAttention(self._cache, self._slopes, batch)
        return self._model(torch.from_numpy(batch.input_ids).to(self._device), attend)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden).float()

    def close(self) -> None:
        pass
