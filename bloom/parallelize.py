"""Parallelism applied from outside the model: cut a BloomModel to a rank's share, then compute with the other ranks.

T = packed tokens, M = rows, H = hidden size, V = rows of this rank's embedding.
Source: Shoeybi et al. 2019, Megatron-LM, section 3.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import add_layer_norm, bias_gelu, layer_norm
from .model import MLP, Attend, Block, BloomModel
from .parallel import Shard

AllReduce = Callable[[Tensor], None]  # sums a contiguous tensor over the tensor-parallel ranks, in place


def cut_to_shard(model: BloomModel, shard: Shard) -> BloomModel:
    """Leave in `model` what belongs to `shard`, and return it. Parameters keep their names; meta tensors stay meta.

    The rows of the vocabulary's padding are zero.
    """
    config = model.config
    kept = {str(i): model.h[i] for i in range(shard.first_layer, shard.last_layer + 1)}
    model.h = nn.ModuleDict(kept)  # type: ignore[assignment]  # a dict keeps the layers' numbers in the names
    for name in ("word_embeddings", "word_embeddings_layernorm", "ln_f"):
        if not shard.holds(config, f"{name}.weight"):
            delattr(model, name)
    for path, module in model.named_modules():
        for name, whole in list(module.named_parameters(recurse=False)):
            rows, columns = shard.part(config, f"{path}.{name}")
            part = whole.detach()[rows] if whole.dim() == 1 else whole.detach()[rows, columns]
            if path == "word_embeddings":
                part = F.pad(part, (0, 0) * (whole.dim() - 1) + (0, shard.vocabulary_rows(config) - len(part)))
            # Said in so many words, or torch imports sympy to find the strides of a meta tensor's clone: a second.
            part = part.clone(memory_format=torch.contiguous_format)
            setattr(module, name, nn.Parameter(part, requires_grad=whole.requires_grad))
    return model


class Stage:
    """What one rank computes. `model` is cut to `shard`; `all_reduce` reaches the ranks that share its layers.

    Linear layers that are cut by columns give partial sums: a hook adds those of the other ranks. Their biases stay on
    tp_rank 0 alone, so that they are added once.
    fused: LayerNorms with the sum before them, and biases with GELU, in one kernel; by default on CUDA.
    """

    def __init__(
        self, model: BloomModel, shard: Shard, all_reduce: AllReduce | None = None, *, fused: bool | None = None
    ) -> None:
        self.model = model
        self.shard = shard
        self.blocks = [cast(Block, block) for block in model.h.children()]
        norm_weight = self.blocks[0].input_layernorm.weight  # never quantized
        self.dtype, self.device = norm_weight.dtype, norm_weight.device
        self._fused = norm_weight.is_cuda if fused is None else fused
        self._all_reduce = all_reduce
        if self._fused:
            linears = [block.mlp.dense_h_to_4h for block in self.blocks]
            self._gelu_biases = {linear: cast(Tensor, linear.bias) for linear in linears}
            for linear in linears:
                linear.register_parameter("bias", None)
        if all_reduce is not None:
            self._add_up(all_reduce)

    def _add_up(self, all_reduce: AllReduce) -> None:
        def add_other_ranks(module: nn.Module, inputs: object, partial: Tensor) -> Tensor:
            all_reduce(partial)
            return partial

        for name, linear in self.model.named_modules():
            if name.endswith(("self_attention.dense", "mlp.dense_4h_to_h")):  # cut by columns
                linear.register_forward_hook(add_other_ranks)
                if self.shard.tp_rank > 0:
                    linear.register_parameter("bias", None)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        """(T, H) after the stage's layers, the last after ln_f; from ids (T,) or the (T, H) of the stage before."""
        if self.shard.is_first():
            x = self._norm(self.model.word_embeddings_layernorm, self._embed(x))
        normed = self._norm(self.blocks[0].input_layernorm, x)
        for block, following in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            normed, x = self._add_norm(block.post_attention_layernorm, block.self_attention(normed, attend), x)
            out = self._mlp(block.mlp, normed)
            if following is not None:
                normed, x = self._add_norm(following.input_layernorm, out, x)
        if self.shard.is_last(self.model.config):
            return self._add_norm(self.model.ln_f, out, x)[0]
        return x + out

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) of this rank's part of the vocabulary from (M, H), on the last stage."""
        return self.model.logits(hidden)

    def _embed(self, ids: Tensor) -> Tensor:
        """Ids of other ranks give zeros here, and the sum over ranks is the embedding."""
        embedding = self.model.word_embeddings
        if self._all_reduce is None:
            x: Tensor = embedding(ids)
            return x
        own = self.shard.vocabulary(self.model.config)
        local = ids - own.start
        foreign = (local < 0) | (local >= own.stop - own.start)
        x = embedding(local.masked_fill(foreign, 0)).masked_fill(foreign[:, None], 0)
        self._all_reduce(x)
        return x

    def _norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        if self._fused:
            return layer_norm(x, norm.weight, norm.bias, norm.eps)
        out: Tensor = norm(x)
        return out

    def _add_norm(self, norm: nn.LayerNorm, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """LayerNorm of the sum, and the sum."""
        if self._fused:
            return add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
        total = x + residual
        return norm(total), total

    def _mlp(self, mlp: MLP, x: Tensor) -> Tensor:
        if self._fused:
            up = mlp.dense_h_to_4h
            x = mlp.dense_4h_to_h(bias_gelu(up(x), self._gelu_biases[up]))
            return x
        out: Tensor = mlp(x)
        return out
