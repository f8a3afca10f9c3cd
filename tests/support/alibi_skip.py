"""One query and its context, to ask what may be left out; and what leaving it out does, in fp64.

N = heads, D = head dim, L = context, M = blocks
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bloom.alibi import slopes
from bloom.kernels import naive

BLOCK_SIZE, HEAD_DIM = 16, 32


@dataclass(frozen=True, eq=False)
class SkipCase:
    q: Tensor  # (1, N, D)
    cache: Tensor  # (2, M, BLOCK_SIZE, N, D): keys and values; NaN behind the context
    key_norms: Tensor  # (N, M)
    slopes: Tensor  # (N,)
    context_len: int

    @classmethod
    def random(cls, *, n_head: int, context_len: int, norm: float, seed: int = 0) -> "SkipCase":
        """Keys of lengths around `norm`, a query of length 1 times sqrt(D): scores around `norm`."""
        generator = torch.Generator().manual_seed(seed)
        keys, values = torch.randn(2, context_len, n_head, HEAD_DIM, generator=generator)
        keys *= norm / HEAD_DIM**0.5
        q = torch.randn(1, n_head, HEAD_DIM, generator=generator)
        return cls.of(q, keys, values)

    @classmethod
    def adversarial(cls, *, n_head: int, context_len: int, norm: float) -> "SkipCase":
        """All keys are of the same length, the last four blocks against the query, the others along it."""
        base = cls.random(n_head=n_head, context_len=context_len, norm=norm)
        along = base.q[0] / base.q[0].norm(dim=-1, keepdim=True) * norm  # (N, D)
        keys = along.expand(context_len, -1, -1).clone()
        keys[-4 * BLOCK_SIZE :] *= -1
        return cls.of(base.q, keys, base.values())

    @classmethod
    def of(cls, q: Tensor, keys: Tensor, values: Tensor) -> "SkipCase":
        length, n_head, head_dim = keys.shape
        cache = torch.full((2, -(-length // BLOCK_SIZE), BLOCK_SIZE, n_head, head_dim), torch.nan)
        cache.flatten(1, 2)[:, :length] = torch.stack([keys, values])
        case = cls(q, cache, torch.empty(0), torch.tensor(slopes(n_head)), length)
        return case.with_norms()

    def with_norms(self) -> "SkipCase":
        norms = self.cache[0].norm(dim=-1).nan_to_num(nan=0.0).amax(dim=1).T  # (N, M)
        return replace(self, key_norms=norms.contiguous())

    def keys(self) -> Tensor:
        return self.cache[0].flatten(0, 1)[: self.context_len]

    def values(self) -> Tensor:
        return self.cache[1].flatten(0, 1)[: self.context_len]

    def weights(self) -> Tensor:
        """(N, L) fp64."""
        scores = torch.einsum("nd,lnd->nl", self.q[0].double(), self.keys().double()) / HEAD_DIM**0.5
        distance = torch.arange(self.context_len).double() - (self.context_len - 1)
        return torch.softmax(scores + self.slopes.double()[:, None] * distance, dim=-1)

    def attend(self, kept: Tensor) -> Tensor:
        """(N, D) fp64 over the kept blocks (N, M)."""
        weights = self.weights() * kept.repeat_interleave(BLOCK_SIZE, dim=1)[:, : self.context_len]
        return torch.einsum("nl,lnd->nd", weights / weights.sum(dim=-1, keepdim=True), self.values().double())


def kept_of(case: SkipCase, tolerance: float) -> Tensor:
    """(N, M) bool, by the twin."""
    positions = torch.tensor([case.context_len - 1])
    return naive.kept_blocks(
        case.q, case.keys()[-1][None], case.key_norms[None], positions, case.slopes,
        block_size=BLOCK_SIZE, tolerance=tolerance,
    )[0]  # fmt: skip


def dropped_share(case: SkipCase, kept: Tensor) -> Tensor:
    """(N,) fp64: the share of the mass that is left out."""
    return (case.weights() * ~kept.repeat_interleave(BLOCK_SIZE, dim=1)[:, : case.context_len]).sum(dim=-1)
