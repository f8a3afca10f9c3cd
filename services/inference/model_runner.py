"""Runs the model on a step's chunks.

T = packed tokens, M = rows whose logits are needed, H = hidden size, V = rows of the head
"""

import numpy as np
import torch
from torch import Tensor

from bloom.alibi import slopes
from bloom.config import BloomConfig
from bloom.model import BloomModel
from services.inference.attention import PagedAttention
from services.inference.kv_cache import CacheSize, KVCache
from services.inference.scheduler import Chunk


class ModelRunner:
    """A model and its cache on one device."""

    def __init__(self, model: BloomModel, config: BloomConfig, size: CacheSize) -> None:
        weight = model.word_embeddings.weight
        self._model = model
        self._device = weight.device
        self._cache = KVCache(config, size, dtype=weight.dtype, device=weight.device)
        self._slopes = torch.tensor(slopes(config.n_head), dtype=torch.float32, device=weight.device)

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> Tensor:
        """Hidden states (T, H) of the chunks' tokens, packed in order; keys and values go to the cache."""
        ids = np.concatenate(
            [
                np.frombuffer(seq.token_ids, dtype=np.int64)[seq.num_computed : seq.num_computed + num_tokens]
                for seq, num_tokens in chunks
            ]
        )
        attend = PagedAttention(self._cache, self._slopes, chunks)
        return self._model(torch.from_numpy(ids).to(self._device), attend)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """Logits (M, V), fp32, of these rows of `hidden` (T, H)."""
        chosen = hidden if len(rows) == len(hidden) else hidden[rows]
        return self._model.logits(chosen).float()
