"""AdamW, or Muon on the matrices with AdamW on the rest, under ZeRO.

DeepSpeed's ZeRO hands an optimizer one flat fp32 tensor per parameter group: this rank's 1/N of the group's
parameters, laid end to end and padded. AdamW works element by element and does not care. Muon needs whole matrices:
momentum stays with the partition, the updates of all partitions are gathered, and each rank orthogonalises the matrices
that its partition touches. ZeRO-3 cuts each parameter instead, so Muon stays with 1 and 2. See
docs/adr/0003-optimizer.md for why DeepSpeed's own Muon is not used.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from services.trainer.config import Optimizer, TrainConfig

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 5
ADAM_STATE = ("exp_avg", "exp_avg_sq")
MUON_STATE = ("momentum",)


class MuonAdamW(torch.optim.Optimizer):
    """AdamW; Muon in groups with "matrices", the shapes (rows, columns) that lie end to end in the group.

    Every group has lr, weight_decay, and betas or matrices. compute_dtype: of the Newton-Schulz iteration. replicas:
    the ranks among which ZeRO divides the groups; by default this one alone.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        compute_dtype: torch.dtype,
        replicas: dist.ProcessGroup | None = None,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"eps": eps, "step": 0})
        self._compute_dtype = compute_dtype
        self._replicas = replicas

    def initialize_state(self) -> None:
        """Make the state that the first step would make: zeros."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.initialize_state_of(group, parameter)

    def initialize_state_of(self, group: dict[str, Any], parameter: Tensor) -> None:
        if not self.state[parameter]:
            keys = MUON_STATE if "matrices" in group else ADAM_STATE
            self.state[parameter] = {key: torch.zeros_like(parameter) for key in keys}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.initialize_state()
        for group in self.param_groups:
            group["step"] += bool(group["params"])  # ZeRO-3 steps one group at a time, the others are empty then
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if "matrices" in group:
                for parameter in parameters:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._muon(parameter.grad, self.state[parameter], group["matrices"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"])
            elif parameters:
                self._adamw(parameters, group)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """In one pass over memory, without temporaries."""
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [torch.tensor(float(group["step"] - 1), device=parameter.device) for parameter in parameters],
            # That kernel goes by addresses alone.
            fused=all(parameter.is_contiguous() for parameter in parameters),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _muon(self, gradient: Tensor, state: dict[str, Any], matrices: list[tuple[int, int]]) -> Tensor:
        state["momentum"].lerp_(gradient, 1 - MUON_MOMENTUM)
        update = gradient.lerp(state["momentum"], MUON_MOMENTUM).view(-1)  # Nesterov
        size = update.numel()
        start = size * (dist.get_rank(self._replicas) if self._replicas else 0)
        whole = self._gather(update)
        for offset, (rows, columns) in _offsets(matrices):
            if offset < start + size and start < offset + rows * columns:
                matrix = whole[offset : offset + rows * columns].view(rows, columns)
                matrix.copy_(orthogonalised(matrix, self._compute_dtype).mul_(max(1, rows / columns) ** 0.5))
        return whole[start : start + size]

    def _gather(self, partition: Tensor) -> Tensor:
        """All replicas' partitions, in order."""
        if self._replicas is None or dist.get_world_size(self._replicas) == 1:
            return partition
        whole = partition.new_empty(partition.numel() * dist.get_world_size(self._replicas))
        dist.all_gather_single(whole, partition, group=self._replicas)
        return whole


def _offsets(matrices: list[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, int]]]:
    offset = 0
    for rows, columns in matrices:
        yield offset, (rows, columns)
        offset += rows * columns


def orthogonalised(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """U V^T, about, of matrix = U S V^T: singular values between 0.7 and 1.2.

    A quintic Newton-Schulz iteration in `dtype`. Source: Jordan et al. 2024, Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def is_for_muon(name: str, parameter: Tensor, optimizer: Optimizer) -> bool:
    return optimizer == "muon" and parameter.dim() > 1 and "word_embeddings" not in name


def state_keys(name: str, parameter: Tensor, optimizer: Optimizer) -> tuple[str, ...]:
    """What the optimizer keeps of a parameter, each of its shape."""
    return MUON_STATE if is_for_muon(name, parameter, optimizer) else ADAM_STATE


def build_optimizer(model: nn.Module, config: TrainConfig, replicas: dist.ProcessGroup | None = None) -> MuonAdamW:
    """The optimizer over model's trainable parameters; biases and LayerNorms are not decayed, as in Megatron.

    Each group's "peak" is the learning rate that the schedule scales. replicas: see MuonAdamW.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_for_muon(name, parameter, config.optimizer):
            matrices.append(parameter)
        else:
            (decayed if parameter.dim() > 1 else kept).append(parameter)
    betas = (config.beta1, config.beta2)
    adam = {"peak": config.learning_rate, "betas": betas, "lr": 0.0}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, **adam},
        {"params": kept, "weight_decay": 0.0, **adam},
        {
            "params": matrices,
            "weight_decay": config.weight_decay,
            "peak": config.muon_learning_rate,
            "lr": 0.0,
            "matrices": [tuple(parameter.shape) for parameter in matrices],
        },
    ]
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    return MuonAdamW((group for group in groups if group["params"]), compute_dtype=dtype, replicas=replicas)
