"""The gradient of a tied embedding, once: what the lookup adds to it goes into the head's gradient, row by row.

Autograd would make a second gradient of all rows, almost all of them zero, and add the two: 1 GB at 560m.
V = rows, H = hidden size, T = ids.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class TiedGradient:
    """Joins the two uses of one weight (V, H) in a forward pass: first `rows`, then `head`."""

    def __init__(self) -> None:
        self._of_head: Tensor | None = None  # from the backward pass of the head to that of the lookup

    def rows(self, ids: Tensor, weight: Tensor) -> Tensor:
        """(T, H) of ids (T,)."""
        lookup: Any = _Lookup
        out: Tensor = lookup.apply(weight, ids, self)
        return out

    def head(self, weight: Tensor) -> Tensor:
        """The weight, for the head."""
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return weight
        seen: Any = weight.view_as(weight)
        seen.register_hook(self._keep)
        head: Tensor = seen
        return head

    def _keep(self, gradient: Tensor) -> None:
        self._of_head = gradient

    def add(self, ids: Tensor, gradient: Tensor) -> None:
        """Add the lookup's gradient (T, H). Autograd holds the head's until the lookup has had its turn."""
        if self._of_head is None:
            raise RuntimeError("the head's gradient has not come before the lookup's: pass `head` to the loss")
        # In a fixed order, unlike index_add_ on a GPU.
        self._of_head.index_put_((ids,), gradient.to(self._of_head.dtype), accumulate=True)
        self._of_head = None  # or autograd would copy it


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, tied: TiedGradient) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.tied = tied
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.tied.add(ids, gradient)
        return None, None, None
