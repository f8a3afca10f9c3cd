"""The language-modelling loss of a micro-batch. T = B * S tokens packed row-major, H = hidden size, V = vocabulary."""

from typing import Any

from torch import Tensor, nn

from bloom.attention import DenseCausalAttention
from bloom.linear_cross_entropy import linear_cross_entropy
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.tensor_parallel import TensorParallel
from bloom.tied_gradient import TiedGradient
from services.trainer.dataset import IGNORE


class Head:
    """Cross-entropy of hidden states at the targets."""

    def __init__(self, vocabulary: slice, parallel: TensorParallel | None) -> None:
        self._vocabulary = vocabulary
        self._parallel = parallel

    def loss(self, hidden: Tensor, weight: Tensor, targets: Tensor, target_weights: Tensor | None = None) -> Tensor:
        """Sum over the targets (B, S) that are not IGNORE, in fp32, of hidden (T, H), or a rank's tokens of it.

        weight: the embedding (V, H), or a rank's rows of it. target_weights: (B, S), of each target; None: 1.
        """
        group = None
        if self._parallel:
            hidden, group = self._parallel.enter(hidden), self._parallel.group
        learnt = targets.view(-1) != IGNORE
        return linear_cross_entropy(
            hidden[learnt],
            weight,
            targets.view(-1)[learnt],
            row_weights=None if target_weights is None else target_weights.view(-1)[learnt],
            vocabulary=self._vocabulary,
            group=group,
        )


class Attention:
    """Makes the `attend` of each micro-batch; the mask of unpacked ones is made once for a shape."""

    def __init__(self, slopes: tuple[float, ...]) -> None:
        self._slopes = slopes
        self._kept: tuple[Any, DenseCausalAttention] | None = None

    def over(
        self, inputs: tuple[int, int], segments: Tensor | None, *, dropout: float, seed: int, device: Any
    ) -> DenseCausalAttention:
        """Over inputs (B, S), in segments (B, S) or one document each; seed: of the dropout."""
        key = (inputs, dropout, device)
        if segments is None and self._kept and self._kept[0] == key:
            self._kept[1].seed = seed
            return self._kept[1]
        attention = DenseCausalAttention(
            self._slopes, *inputs, segment_ids=segments, dropout=dropout, seed=seed, device=device
        )
        if segments is None:
            self._kept = (key, attention)
        return attention


class LanguageModelLoss(nn.Module):
    """Sum of the cross-entropies at targets, times `scale`; what DeepSpeed wraps where there is one stage."""

    def __init__(self, model: BloomModel, shard: Shard | None = None, parallel: TensorParallel | None = None) -> None:
        super().__init__()
        shard = shard or Shard.of(model.config)
        self.model = model
        self._attention = Attention(shard.slopes(model.config))
        self._head = Head(shard.vocabulary(model.config), parallel)
        self._tied = model.word_embeddings.tied = TiedGradient()

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        segments: Tensor | None,
        scale: float,
        seed: int = 0,
        target_weights: Tensor | None = None,
    ) -> Tensor:
        """inputs, targets (B, S) int64, segments (B, S) or None -> scalar, fp32. seed: of attention's dropout.

        target_weights: (B, S) fp32, what each target's loss is multiplied by; None: 1.
        """
        dropout = self.model.config.attention_dropout if self.training else 0.0
        attend = self._attention.over(
            (inputs.shape[0], inputs.shape[1]), segments, dropout=dropout, seed=seed, device=inputs.device
        )
        hidden = self.model(inputs.view(-1), attend)
        weight = self._tied.head(self.model.word_embeddings.weight)
        return self._head.loss(hidden, weight, targets, target_weights) * scale
