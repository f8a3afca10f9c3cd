"""LoRA on the linear layers: trained beside frozen weights, merged into them on export."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.trainer.config import LoraConfig


class LoraLinear(nn.Module):
    """y = x W^T + b + (alpha / r) dropout(x) A^T B^T; A (r, in), B (out, r) starts at zero. Source: Hu et al. 2021."""

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        a = torch.empty(config.rank, base.in_features)
        nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator)
        self.lora_a = nn.Parameter(a.to(base.weight))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, config.rank))
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        out: Tensor = self.base(x) + F.linear(low, self.lora_b) * self.scale
        return out


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze the model and put an adapter on each of its linear layers."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        model.set_submodule(name, LoraLinear(linear, config, generator))
