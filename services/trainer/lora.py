"""LoRA on the linear layers: trained beside frozen weights, merged into them on export.

T = packed tokens, r = the adapter's rank. Over tensor-parallel ranks the side of an adapter that meets the layer's cut
is cut with it: B's rows of a column-parallel layer, A's columns of a row-parallel one. The other side is whole on every
rank, and what passes between the two, (T, r), is exchanged as the layer's own input or output is. So every rank gets
the whole gradient of the whole side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloom.initial import own_generator
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from bloom.tensors import expected_tensors
from services.trainer.config import LoraConfig


class LoraLinear(nn.Module):
    """y = x W^T + b + (alpha / r) dropout(x) A^T B^T; A (r, in), B (out, r) starts at zero. Source: Hu et al. 2021."""

    def __init__(self, base: nn.Linear, config: LoraConfig, a: Tensor) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(a.to(base.weight).contiguous())
        self.lora_b = nn.Parameter(base.weight.new_zeros(len(base.weight), config.rank))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self._added(F.dropout(x, self.dropout, self.training)) * self.scale
        return out

    def _added(self, x: Tensor) -> Tensor:
        match self.base:
            case ColumnParallelLinear(parallel=parallel):
                return F.linear(parallel.enter(F.linear(x, parallel.shared(self.lora_a))), self.lora_b)
            case RowParallelLinear(parallel=parallel):
                return F.linear(parallel.leave(F.linear(x, self.lora_a)), parallel.shared(self.lora_b))
        return F.linear(F.linear(x, self.lora_a), self.lora_b)


def add_adapters(model: BloomModel, config: LoraConfig, seed: int, shard: Shard | None = None) -> None:
    """Freeze the model and put an adapter on each of its linear layers; shard: what the model is cut to."""
    shard = shard or Shard.of(model.config)
    model.requires_grad_(False)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        a = initial_a(expected_tensors(model.config)[f"{name}.weight"][1], config.rank, seed, name)
        _, columns = shard.part(model.config, f"{name}.lora_a")
        model.set_submodule(name, LoraLinear(linear, config, a[:, columns]))
        if config.base_weights:
            from services.trainer.nf4 import keep_in_nf4  # bitsandbytes takes seconds to import

            keep_in_nf4(linear)


def initial_a(num_inputs: int, rank: int, seed: int, layer: str) -> Tensor:
    """The whole A (r, in) of a layer, as peft draws it, from a seed of its own: the same in every layout."""
    a = torch.empty(rank, num_inputs)
    nn.init.kaiming_uniform_(a, a=5**0.5, generator=own_generator(seed, f"{layer}.lora_a"))
    return a
