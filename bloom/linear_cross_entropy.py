"""Cross-entropy behind a linear head whose logits are never held whole.

M = rows with a target, H = hidden size, V = rows of this rank's head.
Computed a few rows at a time, the gradients together with the loss: they need the same probabilities, so nothing is
computed twice, and what is held is one chunk of logits. Source: Wijmans et al. 2024, Cut Your Losses, section 3, for
the idea; Shoeybi et al. 2019, Megatron-LM, section 3, for a head that is cut over ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 192 << 20  # of fp32 logits; with bf16 ones beside them less than 300 MB


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    row_weights: Tensor | None = None,
    vocabulary: slice | None = None,
    group: dist.ProcessGroup | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Sum over rows of -log softmax(hidden @ weight.T)[target], in fp32: hidden (M, H), weight (V, H), targets (M,).

    row_weights: (M,) fp32, what each row's summand is multiplied by; None: 1.
    group: ranks that share the head, all with the same hidden and targets. `vocabulary`: the ids whose rows `weight`
    begins with, step 1; rows after them are padding and take no part. The gradient of hidden is then this rank's
    summand. Differentiable once. chunk_bytes: of logits held at a time, at least one row.
    """
    vocabulary = slice(0, len(weight)) if vocabulary is None else vocabulary
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()  # else gradients are computed that nobody asks for
    function: Any = _LinearCrossEntropy
    loss: Tensor = function.apply(hidden, weight, targets, row_weights, vocabulary, group, chunk_bytes)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None,
        vocabulary: slice,
        group: dist.ProcessGroup | None,
        chunk_bytes: int,
    ) -> Tensor:
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=hidden.device)
        num_rows = max(1, chunk_bytes // (4 * len(weight)))
        for start in range(0, len(hidden), num_rows):
            chunk = slice(start, start + num_rows)
            losses, grad_logits = _chunk(hidden[chunk], weight, targets[chunk], vocabulary, group)
            if row_weights is not None:
                losses *= row_weights[chunk]
                grad_logits *= row_weights[chunk, None]
            total += losses.sum()
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.T, hidden[chunk])
            del grad_logits  # or it would lie beside the next one
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        for gradient in (grad_hidden, grad_weight):
            if gradient is not None:
                gradient.mul_(scale)
        return grad_hidden, grad_weight, None, None, None, None, None


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocabulary: slice, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Losses of a few rows (R,), and their gradients in the logits (R, V), in fp32."""
    count = vocabulary.stop - vocabulary.start
    logits = F.linear(hidden, weight).float()  # (R, V)
    logits[:, count:] = float("-inf")
    local = targets - vocabulary.start
    own = (local >= 0) & (local < count)
    local = local.clamp(0, len(weight) - 1)[:, None]  # (R, 1)

    greatest = logits.amax(dim=1) if count else logits.new_full(targets.shape, float("-inf"))
    _all_reduce(greatest, dist.ReduceOp.MAX, group)
    logits -= greatest[:, None]
    expected = logits.gather(1, local)[:, 0].masked_fill(~own, 0.0)
    logits.exp_()
    sums = torch.stack((logits.sum(dim=1), expected))
    _all_reduce(sums, dist.ReduceOp.SUM, group)
    denominator, expected = sums
    losses = denominator.log() - expected

    logits /= denominator[:, None]
    logits.scatter_add_(1, local, -own[:, None].to(logits.dtype))
    return losses, logits


def _all_reduce(tensor: Tensor, op: Any, group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.all_reduce(tensor, op=op, group=group)
