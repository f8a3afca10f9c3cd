"""The language-modelling loss of a micro-batch. T = B * S tokens packed row-major, H = hidden size, V = vocabulary."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.model import BloomModel
from services.trainer.dataset import IGNORE

MAX_LOGITS = 1 << 26  # elements held at once; more are computed in chunks, again in the backward pass


class LanguageModelLoss(nn.Module):
    """Sum of the cross-entropies at targets, times `scale`; what DeepSpeed wraps."""

    def __init__(self, model: BloomModel) -> None:
        super().__init__()
        self.model = model
        self._slopes = slopes(model.config.n_head)
        self._shared: tuple[Any, DenseCausalAttention] | None = None

    def forward(self, inputs: Tensor, targets: Tensor, segments: Tensor | None, scale: float) -> Tensor:
        """inputs, targets (B, S) int64, segments (B, S) or None -> scalar, fp32."""
        hidden = self.model(inputs.view(-1), self._attention(inputs, segments))  # (T, H)
        learnt = targets.view(-1) != IGNORE
        hidden, expected = hidden[learnt], targets.view(-1)[learnt]  # (M, H), (M,)
        rows = max(1, MAX_LOGITS // self.model.config.vocab_size)
        if len(expected) <= rows:
            return self._cross_entropy(hidden, expected) * scale
        chunks = zip(torch.split(hidden, rows), torch.split(expected, rows), strict=True)
        parts = [checkpoint(self._cross_entropy, *chunk, use_reentrant=False) for chunk in chunks]
        return torch.stack(parts).sum() * scale

    def _cross_entropy(self, hidden: Tensor, expected: Tensor) -> Tensor:
        return F.cross_entropy(self.model.logits(hidden).float(), expected, reduction="sum")

    def _attention(self, inputs: Tensor, segments: Tensor | None) -> DenseCausalAttention:
        batch, length = inputs.shape
        dropout = self.model.config.attention_dropout if self.training else 0.0
        key = (batch, length, dropout, inputs.device)
        if segments is None and self._shared and self._shared[0] == key:  # one mask for all batches of a shape
            return self._shared[1]
        attention = DenseCausalAttention(
            self._slopes, batch, length, segment_ids=segments, dropout=dropout, device=inputs.device
        )
        if segments is None:
            self._shared = (key, attention)
        return attention
