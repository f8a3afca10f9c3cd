"""MuonAdamW beside PyTorch's own optimizers."""

import pytest
import torch
from torch import nn

from services.trainer.config import TrainConfig
from services.trainer.optimizer import MuonAdamW, build_optimizer, orthogonalised


def gradients(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def after(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    for grad in grads:
        parameter.grad = grad.reshape(parameter.shape).clone()
        optimizer.step()
    return parameter.detach()


def test_adamw_equals_torch():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12)) for _ in range(2))
    group = {"params": [ours], "lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    got = after(MuonAdamW([group], compute_dtype=torch.float32), ours, gradients((12,), 5))
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    torch.testing.assert_close(got, after(reference, theirs, gradients((12,), 5)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (8, 8)])
def test_muon_equals_torch(shape):
    """PyTorch iterates in bf16, so we do too here."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone().flatten()), nn.Parameter(start.clone())
    group = {"params": [ours], "lr": 0.02, "weight_decay": 0.1, "matrices": [shape]}
    got = after(MuonAdamW([group], compute_dtype=torch.bfloat16), ours, gradients(shape, 3))
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    torch.testing.assert_close(got.view(shape), after(reference, theirs, gradients(shape, 3)), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
def test_orthogonalising_brings_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    singular_values = torch.linalg.svdvals(orthogonalised(matrix, torch.float32))
    assert singular_values.min() > 0.3
    assert singular_values.max() < 1.3


def test_matrices_get_muon_and_embeddings_biases_and_norms_adamw():
    model = nn.ModuleDict({"word_embeddings": nn.Embedding(5, 4), "linear": nn.Linear(4, 8), "norm": nn.LayerNorm(8)})
    groups = build_optimizer(model, TrainConfig(steps=1, optimizer="muon", weight_decay=0.1)).param_groups
    by_kind = {(bool(g.get("matrices")), g["weight_decay"]): {tuple(p.shape) for p in g["params"]} for g in groups}
    assert by_kind == {(False, 0.1): {(5, 4)}, (False, 0.0): {(8,)}, (True, 0.1): {(8, 4)}}
