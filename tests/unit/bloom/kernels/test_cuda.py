"""The dispatch by device; every kernel on CUDA where there is one."""

import dataclasses
import inspect

import pytest
import torch

from bloom import kernels
from bloom.kernels import naive
from tests.support.paged_attention import (
    CASES,
    PREFILL_CASES,
    TOLERANCE,
    PagedCase,
    PrefillCase,
    error,
    prefill_by_definition,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_every_launcher_takes_what_its_twin_takes():
    """A launcher's own parameters come after and have defaults."""
    for name in ("paged_decode_attention", "paged_prefill_attention", "store_kv", "layer_norm", "add_layer_norm",
                 "bias_gelu", "linear", "int8_linear", "penalize", "sample"):  # fmt: skip
        launcher, twin = kernels.launcher(getattr(naive, name)), getattr(naive, name)
        own, shared = _parameters(launcher), _parameters(twin)
        assert list(own)[: len(shared)] == list(shared)
        assert all(parameter.default is not parameter.empty for key, parameter in own.items() if key not in shared)
        assert getattr(kernels, name) is not twin


def _parameters(function: object) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", [*CASES, PagedCase(n_head=112, head_dim=128, context_lens=(4000, 1, 2049))], ids=str)
def test_decode_attention(case: PagedCase, dtype: torch.dtype):
    inputs = dataclasses.replace(case, dtype=dtype).inputs("cuda")
    assert error(kernels.paged_decode_attention(*inputs), inputs) < TOLERANCE[dtype]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("cache_dtype", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", PREFILL_CASES, ids=str)
def test_prefill_attention(case: PrefillCase, dtype: torch.dtype, cache_dtype: torch.dtype | None):
    inputs, beside = dataclasses.replace(case, dtype=dtype, cache_dtype=cache_dtype).inputs()
    expected = prefill_by_definition(inputs, beside)
    on_device = [x.cuda() for x in inputs]
    out = kernels.paged_prefill_attention(*on_device, **{name: x.cuda() for name, x in beside.items()})
    assert (out.cpu().double() - expected).abs().max() < 2 * TOLERANCE[dtype]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_and_products(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(33, 1024, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(1024, generator=generator).to(dtype) for _ in range(2))
    matrix = torch.randn(520, 1024, generator=generator).to(dtype) / 32
    quantized = torch.randint(-127, 128, (520, 1024), generator=generator, dtype=torch.int8)
    scales = torch.rand(520, generator=generator) / 2000
    for name, arguments in (
        ("layer_norm", (x, weight, bias, 1e-5)),
        ("bias_gelu", (x, bias)),
        ("linear", (x, matrix, bias[:520].contiguous())),
        ("int8_linear", (x, quantized, scales, bias[:520].contiguous())),
    ):
        on_device = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        got, expected = getattr(kernels, name)(*on_device).cpu(), getattr(naive, name)(*arguments)
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2 * TOLERANCE[dtype])
    got = kernels.add_layer_norm(x.cuda(), residual.cuda(), weight.cuda(), bias.cuda(), 1e-5)[0].cpu()
    expected = naive.add_layer_norm(x, residual, weight, bias, 1e-5)[0]
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2 * TOLERANCE[dtype])


@pytest.mark.gpu
@needs_cuda
def test_sampling_over_blooms_vocabulary():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 250_880, generator=generator) * 3
    arguments = (logits, torch.arange(16), torch.arange(16), torch.linspace(0, 1.5, 16))
    filters = {"top_ks": torch.full((16,), 50, dtype=torch.int32), "top_ps": torch.full((16,), 0.9)}
    got = kernels.sample(*(x.cuda() for x in arguments), **{k: x.cuda() for k, x in filters.items()}, num_ids=250_680)
    assert torch.equal(got.cpu(), naive.sample(*arguments, **filters, num_ids=250_680))
