"""Training over tensor-parallel ranks: the layers of a cut BloomModel exchange classes for those that reach the others.

T = packed tokens, P = ranks, H = hidden size. With sequence parallelism every rank keeps T / P of the tokens between
the cut layers: LayerNorms, dropout and the residual run on those alone.
Source: Shoeybi et al. 2019, Megatron-LM, section 3; Korthikanti et al. 2022, section 4.2.2.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .model import BloomModel, TiedEmbedding
from .parallel import Shard


@dataclass(frozen=True, slots=True)
class TensorParallel:
    """The ranks that share each layer, and what they hold between the layers."""

    group: dist.ProcessGroup
    sequence: bool = False  # each its part of the tokens

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def enter(self, x: Tensor) -> Tensor:
        """(T, H) for a layer that each rank has a part of; the gradients of the parts are added up."""
        return _apply(_Gather if self.sequence else _Copy, x, self.group)

    def leave(self, partial: Tensor) -> Tensor:
        """The sum over ranks of what their parts gave: all of it, or a rank's tokens."""
        return _apply(_ReduceScatter if self.sequence else _AllReduce, partial, self.group)

    def shared(self, parameter: Tensor) -> Tensor:
        """A parameter of all ranks, used on what they hold between layers: its gradient is that of all tokens."""
        return _apply(_Copy, parameter, self.group) if self.sequence else parameter


class _CutLinear(nn.Linear):
    parallel: TensorParallel

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """By this rank's part of the weight."""
        return F.linear(x, self.weight, bias)


class ColumnParallelLinear(_CutLinear):
    """A rank's rows of the weight; outputs stay apart."""

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.parallel.enter(x), self.bias)


class RowParallelLinear(_CutLinear):
    """A rank's columns of the weight; the partial outputs are added up, then the whole bias."""

    def forward(self, x: Tensor) -> Tensor:
        return self.parallel.leave(self.multiply(x)) + self.parallel.shared(self.bias)


class VocabularyParallelEmbedding(TiedEmbedding):
    """A rank's rows: ids of others give zeros here, and the sum over ranks is the embedding."""

    parallel: TensorParallel
    vocabulary: slice

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.vocabulary.start
        foreign = (local < 0) | (local >= self.vocabulary.stop - self.vocabulary.start)
        x = self.rows(local.masked_fill(foreign, 0)).masked_fill(foreign[:, None], 0)
        return self.parallel.leave(x)


class SharedLayerNorm(nn.LayerNorm):
    """On a rank's tokens; the gradients of weight and bias are those of all tokens."""

    parallel: TensorParallel

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.parallel.shared(self.weight), self.parallel.shared(self.bias)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def parallelize_for_training(model: BloomModel, shard: Shard, parallel: TensorParallel) -> BloomModel:
    """Have `model`, cut to `shard`, compute with the other ranks of `parallel`; return it. Names and values stay."""
    for name, module in model.named_modules():
        if name.endswith(("query_key_value", "dense_h_to_4h")):
            module.__class__ = ColumnParallelLinear
        elif name.endswith(("self_attention.dense", "dense_4h_to_h")):
            module.__class__ = RowParallelLinear
        elif isinstance(module, TiedEmbedding):
            module.__class__ = VocabularyParallelEmbedding
            cast(Any, module).vocabulary = shard.vocabulary(model.config)
        elif isinstance(module, nn.LayerNorm) and parallel.sequence:
            module.__class__ = SharedLayerNorm
        else:
            continue
        cast(Any, module).parallel = parallel
    return model


def _apply(function: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out: Tensor = function.apply(x, group)
    return out


class _Copy(torch.autograd.Function):
    """The same; gradients are added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


class _AllReduce(torch.autograd.Function):
    """Added up; the gradient is each summand's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Gather(torch.autograd.Function):
    """All ranks' tokens; their gradients are added up, and each rank takes its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _scattered_sum(gradient, ctx.group), None


class _ReduceScatter(torch.autograd.Function):
    """Added up, each rank takes its own tokens; gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scattered_sum(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradient, ctx.group), None


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty(len(x) * dist.get_world_size(group), *x.shape[1:])
    dist.all_gather_single(whole, x.contiguous(), group=group)
    return whole


def _scattered_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    size = dist.get_world_size(group)
    if len(x) % size:
        raise ValueError(f"{len(x)} tokens of a micro-batch do not divide by tp={size}; choose another sequence_length")
    part = x.new_empty(len(x) // size, *x.shape[1:])
    dist.reduce_scatter_single(part, x.contiguous(), group=group)
    return part
