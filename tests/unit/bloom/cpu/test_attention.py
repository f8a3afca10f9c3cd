"""The CPU's paged attention, and the bound by which it leaves chunks of keys out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from bloom.alibi import slopes
from bloom.cpu import CannotBuild, load_library
from bloom.cpu.attention import PagedAttention

try:
    load_library()
except CannotBuild as error:
    pytest.skip(f"no operators: {error}", allow_module_level=True)

HEADS = 16


def random_qkv(tokens: int, head_dim: int = 64, *, heads: int = HEADS, scale: float = 1.0, seed: int = 0) -> Tensor:
    """(T, N, 3, D)"""
    return torch.randn(tokens, heads, 3, head_dim, generator=torch.Generator().manual_seed(seed)) * scale


def attend(
    qkv: Tensor, *, decodes: int = 0, dtype: str = "float32", tolerance: float = 0.0
) -> tuple[Tensor, PagedAttention]:
    """The last 1 + `decodes` outputs of one sequence: its prompt, then that many single tokens."""
    tokens = len(qkv)
    blocks = -(-tokens // 16)
    attention = PagedAttention(
        torch.tensor(slopes(qkv.shape[1])), qkv.shape[3], blocks, dtype=dtype, tolerance=tolerance, threads=2
    )
    table = np.random.default_rng(0).permutation(blocks).astype(np.int32)[None]
    outs = []
    for start, end in [(0, tokens - decodes), *((i, i + 1) for i in range(tokens - decodes, tokens))]:
        starts, lens = np.array([0, end - start], dtype=np.int32), np.array([end], dtype=np.int32)
        if end == tokens:
            attention.chunks = attention.chunks_read = 0
        outs.append(attention(qkv[start:end], starts, lens, table)[-1])
    attention.close()
    return torch.stack(outs), attention


def definition(qkv: Tensor) -> Tensor:
    """(N, D) of the last token, in fp64."""
    q, k, v = qkv.double().unbind(dim=2)
    distance = torch.arange(len(qkv), dtype=torch.float64) - (len(qkv) - 1)
    scores = torch.einsum("nd,tnd->nt", q[-1], k) / q.shape[-1] ** 0.5
    scores += torch.tensor(slopes(qkv.shape[1]), dtype=torch.float64)[:, None] * distance
    return torch.einsum("nt,tnd->nd", scores.softmax(dim=-1), v)


@pytest.mark.parametrize("head_dim", [4, 64, 80, 96, 128])
@pytest.mark.parametrize("tokens", [1, 15, 16, 64, 65, 300])
def test_attention_is_softmax_with_alibi(head_dim: int, tokens: int):
    qkv = random_qkv(tokens, head_dim, heads=6)
    for decodes in (0, min(3, tokens - 1)):
        out, _ = attend(qkv, decodes=decodes)
        torch.testing.assert_close(out[-1].double(), definition(qkv), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 3e-2), ("int8", 4e-2)])
@pytest.mark.parametrize("head_dim", [48, 64, 80, 96, 128])
def test_narrow_caches_are_near(dtype: str, bound: float, head_dim: int):
    qkv = random_qkv(300, head_dim)
    out, _ = attend(qkv, decodes=1, dtype=dtype)
    torch.testing.assert_close(out[-1].double(), definition(qkv), atol=bound, rtol=0)


@pytest.mark.parametrize("tolerance", [2.0**-24, 2.0**-9, 0.1])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_leaving_chunks_out_moves_the_output_by_no_more_than_the_bound(tolerance: float, scale: float):
    qkv = random_qkv(2000, scale=scale)
    out, attention = attend(qkv, decodes=1, tolerance=tolerance)
    error = (out[-1].double() - definition(qkv)).abs().amax()
    assert error <= 2 * tolerance * qkv[:, :, 2].abs().amax() + 1e-5
    assert attention.chunks_read < attention.chunks


def test_steep_heads_read_little_and_flat_heads_everything():
    qkv = random_qkv(4096, scale=0.5)
    _, attention = attend(qkv, decodes=1, tolerance=2.0**-9)
    assert attention.chunks == HEADS * 63  # whole chunks behind the last token's own
    assert 0.05 < attention.chunks_read / attention.chunks < 0.5


def test_a_far_key_with_a_huge_norm_is_read():
    """It takes nearly all the mass in every head, from 1,900 tokens away: any fixed window would miss it."""
    qkv = random_qkv(2000, scale=0.3)
    qkv[100, :, 1] = 40_000 * torch.nn.functional.normalize(qkv[-1, :, 0], dim=-1)
    out, attention = attend(qkv, decodes=1, tolerance=2.0**-9)
    torch.testing.assert_close(out[-1], qkv[100, :, 2], atol=1e-3, rtol=0)
    assert HEADS <= attention.chunks_read < attention.chunks


def test_many_chunks_of_little_mass_are_not_all_left_out():
    """Each alone is within the tolerance, together they are not: equal keys, and a head that hardly slopes."""
    qkv = random_qkv(4000, heads=16, scale=1e-3)
    out, _ = attend(qkv, decodes=1, tolerance=0.02)
    flat = slopes(16).index(min(slopes(16)))
    error = (out[-1].double() - definition(qkv)).abs()[flat].amax()
    assert error <= 2 * 0.02 * qkv[:, flat, 2].abs().amax()


def test_without_a_tolerance_everything_is_read():
    _, attention = attend(random_qkv(2000, scale=0.1), decodes=1)
    assert attention.chunks == attention.chunks_read == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_what_is_left_out_does_not_depend_on_how_the_prompt_was_cut(dtype: str):
    qkv = random_qkv(700)
    whole, _ = attend(qkv, dtype=dtype, tolerance=2.0**-9)
    single, _ = attend(qkv, decodes=5, dtype=dtype, tolerance=2.0**-9)
    assert torch.equal(whole[-1], single[-1])


def test_a_block_forgets_the_norm_of_what_it_held():
    attention = PagedAttention(torch.tensor(slopes(HEADS)), 64, 1, dtype="float32", tolerance=2.0**-9)
    table = np.zeros((1, 1), dtype=np.int32)
    for scale in (1000.0, 1.0):
        attention(random_qkv(3, scale=scale), np.array([0, 3], np.int32), np.array([3], np.int32), table)
    assert attention.key_norms.max() < 100
    attention.close()
