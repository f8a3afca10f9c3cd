"""A run's stages as DeepSpeed's PipelineModule. T = B * S tokens; with sequence parallelism, a rank's part of them.

What travels from stage to stage is (hidden states (T, H), dropout seed (1,), segments (B, S) where windows are packed);
the first stage starts from ids (B, S) in place of hidden states. Source: Narayanan et al. 2021, section 2.2 (1F1B).
"""

from functools import partial
from typing import Any

from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor, nn

from bloom.model import BloomModel, TiedEmbedding
from bloom.parallel import Shard
from services.trainer.config import TrainConfig
from services.trainer.dropout import attention_seed, seed_hidden
from services.trainer.loss import Attention, Head
from services.trainer.ranks import Ranks

Travelling = tuple[Tensor, ...]


class StageLayers(nn.Module):
    """The layers of one stage; the embedding's norm on the first, ln_f on the last."""

    def __init__(self, model: BloomModel, shard: Shard, config: TrainConfig, ranks: Ranks) -> None:
        super().__init__()
        self._shape = (config.micro_batch, config.sequence_length)
        self._dropout = config.dropout
        self._ranks = ranks
        self._attention = Attention(shard.slopes(model.config))
        self.first_norm = model.word_embeddings_layernorm if shard.is_first() else None
        self.h = model.h
        self.last_norm = model.ln_f if shard.is_last(model.config) else None

    def forward(self, travelling: Travelling) -> Travelling:
        x, seed, *segments = travelling
        if self.first_norm is not None:
            x = self.first_norm(x)
        dropout = self._dropout if self.training else 0.0
        if dropout:
            seed_hidden(int(seed), self._ranks)
        attend = self._attention.over(
            self._shape,
            segments[0] if segments else None,
            dropout=dropout,
            seed=attention_seed(int(seed), self._ranks) if dropout else 0,
            device=x.device,
        )
        for block in self.h.children():
            x = block(x, attend)
        if self.last_norm is not None:
            x = self.last_norm(x)
        return (x, seed, *segments)


class Stages(PipelineModule):  # type: ignore[misc]
    """This rank's stage of `model`, which is cut to it. Its labels are (targets (B, S), scale (1,)).

    With weights of targets (B, S) behind them, where there are any.
    """

    def __init__(self, model: BloomModel, shard: Shard, config: TrainConfig, ranks: Ranks) -> None:
        topology: ProcessTopology = ranks.grid.topology()
        num_stages = topology.get_dim("pipe")
        embedding = getattr(model, "word_embeddings", None)
        stages: list[Any] = [None] * num_stages  # those of others are never built here
        stages[ranks.pp_rank] = StageLayers(model, shard, config, ranks)
        loss = None
        if shard.is_last(model.config):
            loss = partial(_loss, Head(shard.vocabulary(model.config), ranks.tensor_parallel))
        super().__init__(
            [_Embedding(embedding, _embed), *stages, _Embedding(embedding, _hidden_and_weight)],
            topology=topology,
            loss_fn=loss,
        )

    def _partition_layers(self, method: str = "") -> None:
        """As `Shard` divides them: the embedding with the first stage's layers, the head with the last's."""
        self.parts = [0, *range(2, self.num_stages + 1), self.num_stages + 2]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(self.parts[stage], self.parts[stage + 1])

    def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
        """Those that are trained: beside adapters the embedding is not, and in bf16 DeepSpeed asks for its gradient."""
        tied: list[tuple[nn.Parameter, Any]] = super().get_tied_weights_and_groups()
        return [(weight, group) for weight, group in tied if weight.requires_grad]


class _Embedding(TiedLayerSpec):  # type: ignore[misc]
    """The embedding at one end of the pipeline; DeepSpeed adds up the gradients of both."""

    def __init__(self, embedding: TiedEmbedding | None, forward: Any) -> None:
        super().__init__("embedding", nn.Embedding, forward_fn=forward)
        self._embedding = embedding

    def build(self, log: bool = False) -> TiedEmbedding | None:
        return self._embedding


def _embed(embedding: TiedEmbedding, travelling: Travelling) -> Travelling:
    return (embedding(travelling[0].view(-1)), *travelling[1:])


def _hidden_and_weight(embedding: TiedEmbedding, travelling: Travelling) -> tuple[Tensor, Tensor]:
    """What the loss needs. In bf16 DeepSpeed clears the gradients when the backward pass comes to these outputs: the
    weight has to be one of them, or its gradient would be there already and be lost.
    """
    return travelling[0], embedding.weight.view_as(embedding.weight)


def _loss(head: Head, outputs: tuple[Tensor, Tensor], labels: tuple[Tensor, ...]) -> Tensor:
    targets, scale, *target_weights = labels
    return head.loss(*outputs, targets, *target_weights) * scale[0]
