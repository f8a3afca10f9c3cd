"""Products whose rows do not depend on each other: the same bits for a token alone and among neighbours, on CUDA.

Libraries choose tiles, and with them the order of sums, by the number of rows; here the kernels of bloom.kernels do the
products, with tiles that are always the same. What else a BloomModel computes is row by row anyway.

Source: He et al. 2025, Defeating Nondeterminism in LLM Inference.
"""

from torch import Tensor, nn

from . import kernels
from .int8 import Int8Embedding, Int8Linear, int8_linear, invariant_int8_linear
from .model import BloomModel, TiedEmbedding


class InvariantLinear(nn.Module):
    """Takes over weight and bias of a linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)


class InvariantEmbedding(nn.Module):
    """Takes over the weight of the embedding, which is the head."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) from hidden (M, H)."""
        return kernels.linear(hidden, self.weight)


def to_batch_invariant(model: BloomModel) -> None:
    """Replace every product in `model`, after loading; parameters keep their names.

    int8_dynamic stays as it is: products of integers are exact in any order.
    """
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                setattr(parent, name, InvariantLinear(module))
            elif isinstance(module, TiedEmbedding):
                setattr(parent, name, InvariantEmbedding(module))
            elif isinstance(module, Int8Linear | Int8Embedding) and module.multiply is int8_linear:
                module.multiply = invariant_int8_linear
