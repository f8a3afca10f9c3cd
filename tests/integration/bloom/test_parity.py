"""Our logits are those of transformers' BloomForCausalLM, to 1e-4 in fp32, and a planted mistake would be seen."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import BloomForCausalLM

import bloom.attention
import bloom.model
from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.model import BloomModel
from bloom.weights import load_model
from tests.support.bloom_models import (
    assert_discriminates,
    bloom_logits,
    hf_logits,
    make_hf_folder,
    make_hf_model,
    random_ids,
)

TOLERANCE = 1e-4
VOCAB = 211


def from_hf(hf: BloomForCausalLM, folder: Path) -> BloomModel:
    hf.save_pretrained(folder)
    return load_model(folder)


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n_head=st.integers(2, 12),
    head_dim=st.sampled_from([18, 24, 32]),
    n_layer=st.integers(1, 3),
    vocab=st.integers(150, 300),
    length=st.integers(24, 48),
    seed=st.integers(0, 10**6),
)
def test_logits_equal_transformers_on_random_configurations(
    tmp_path_factory: pytest.TempPathFactory,
    n_head: int,
    head_dim: int,
    n_layer: int,
    vocab: int,
    length: int,
    seed: int,
):
    hidden = n_head * head_dim
    hf = make_hf_model(n_head=n_head, hidden=hidden, n_layer=n_layer, vocab=vocab, seed=seed)
    model = from_hf(hf, tmp_path_factory.mktemp("model"))
    ids = random_ids(2 * length, vocab, seed=seed).view(2, length)
    assert difference(bloom_logits(model, ids), hf_logits(hf, ids)) < TOLERANCE


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("n_head", [3, 7, 8])
def test_logits_equal_transformers_for_the_head_sizes_of_the_family(tmp_path: Path, n_head: int, head_dim: int):
    hf = make_hf_model(n_head=n_head, hidden=n_head * head_dim)
    model = from_hf(hf, tmp_path)
    ids = random_ids(32, VOCAB)
    assert_discriminates(lambda ids: bloom_logits(model, ids), ids)
    assert difference(bloom_logits(model, ids), hf_logits(hf, ids)) < TOLERANCE


def test_logits_equal_transformers_past_2048_tokens(tmp_path: Path):
    hf = make_hf_model()
    ids = random_ids(2300, VOCAB)
    assert difference(bloom_logits(from_hf(hf, tmp_path), ids), hf_logits(hf, ids)) < TOLERANCE


def test_logits_equal_transformers_from_a_sharded_bf16_folder(tmp_path: Path):
    make_hf_folder(tmp_path, n_head=5, hidden=80, sharded=True, dtype=torch.bfloat16)
    hf = BloomForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = random_ids(40, VOCAB)
    assert difference(bloom_logits(load_model(tmp_path), ids), hf_logits(hf, ids)) < TOLERANCE


@dataclass(frozen=True)
class Batch:
    """A model of 6 heads, three sequences with left padding of 0, 7 and 19 tokens, and the oracle's logits."""

    hf: BloomForCausalLM
    folder: Path
    ids: Tensor
    mask: Tensor

    def difference(self, model: BloomModel) -> float:
        """Over the real tokens."""
        real = self.mask.bool()
        return difference(bloom_logits(model, self.ids, self.mask)[real], hf_logits(self.hf, self.ids, self.mask)[real])


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder = tmp_path_factory.mktemp("model")
    hf = make_hf_model(n_head=6, hidden=48, n_layer=2, vocab=VOCAB)
    hf.save_pretrained(folder)
    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, :7] = 0
    mask[2, :19] = 0
    return Batch(hf, folder, random_ids(120, VOCAB).view(3, 40), mask)


def test_logits_equal_transformers_under_left_padding(batch: Batch):
    assert batch.difference(load_model(batch.folder)) < TOLERANCE


def test_a_padded_sequence_gives_the_logits_it_gives_alone(batch: Batch):
    model = load_model(batch.folder)
    alone = bloom_logits(model, batch.ids[2, 19:])
    assert difference(bloom_logits(model, batch.ids, batch.mask)[2, 19:], alone) < TOLERANCE


def test_half_precision_is_as_near_to_fp32_as_transformers_is(batch: Batch):
    exact = hf_logits(batch.hf, batch.ids)
    theirs = hf_logits(BloomForCausalLM.from_pretrained(batch.folder, dtype=torch.bfloat16).eval(), batch.ids)
    ours = bloom_logits(load_model(batch.folder, dtype=torch.bfloat16), batch.ids)
    assert (ours.float() - exact).norm() < 1.2 * (theirs.float() - exact).norm()


# Each mistake must move the logits by far more than the tolerance, or the tests above could not see it.

Mutation = Callable[[BloomModel, pytest.MonkeyPatch], None]


def parameter_left_out(name: str, neutral: float) -> Mutation:
    def mutate(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
        model.get_parameter(name).data.fill_(neutral)

    return mutate


def bias_changed(change: Callable[[Tensor], Tensor]) -> Mutation:
    """change maps the (B, N, S, S) bias and mask of every attention."""
    right = bloom.attention._bias

    def mutate(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(bloom.attention, "_bias", lambda *args: change(right(*args)))

    return mutate


def sees_the_next_token(bias: Tensor) -> Tensor:
    later = torch.ones(bias.shape[-2:], dtype=torch.bool).triu(1).tril(1)
    return bias.masked_fill(later, 0.0)


def misses_itself(bias: Tensor) -> Tensor:
    diagonal = torch.eye(bias.shape[-1], dtype=torch.bool)
    diagonal[0, 0] = False
    return bias.masked_fill(diagonal & (bias.isfinite().sum(dim=-1, keepdim=True) > 1), float("-inf"))


def wrong_slope(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    """Slopes of 8 heads for 6: what an implementation for powers of two alone would take."""
    patch.setattr("tests.support.bloom_models.slopes", lambda n: slopes(8)[:n])


def no_embedding_layer_norm(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    model.word_embeddings_layernorm = nn.Identity()


def erf_gelu(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    exact = F.gelu
    patch.setattr(bloom.model.F, "gelu", lambda x, approximate: exact(x))


def head_untied(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    head = model.word_embeddings.weight.detach() + 0.001
    patch.setattr(BloomModel, "logits", lambda self, hidden: F.linear(hidden, head))


def qkv_in_thirds(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    """Rows read as [3, N, D] where they are [N, 3, D]."""
    for block in model.h:
        for parameter in block.self_attention.query_key_value.parameters():
            rows = parameter.data.unflatten(0, (3, 6, 8))
            parameter.data = rows.transpose(0, 1).flatten(0, 2).contiguous()


def not_scaled(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    attend = DenseCausalAttention.__call__
    patch.setattr(DenseCausalAttention, "__call__", lambda self, i, q, k, v: attend(self, i, q * 8**0.5, k, v))


def residual_after_layer_norm(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    def forward(self: bloom.model.Block, x: Tensor, attend: bloom.model.Attend) -> Tensor:
        x = self.input_layernorm(x)
        x = x + self.self_attention(x, attend)
        return x + self.mlp(self.post_attention_layernorm(x))

    patch.setattr(bloom.model.Block, "forward", forward)


def padding_ignored(model: BloomModel, patch: pytest.MonkeyPatch) -> None:
    right = bloom.attention._bias
    patch.setattr(
        bloom.attention,
        "_bias",
        lambda head_slopes, seq_len, segments, padding: right(head_slopes, seq_len, None, None),
    )


LAYER_NORMS = ["word_embeddings_layernorm", "h.1.input_layernorm", "h.1.post_attention_layernorm", "ln_f"]
LINEARS = ["self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
MUTATIONS: dict[str, Mutation] = {
    **{f"{name}.weight left out": parameter_left_out(f"{name}.weight", 1.0) for name in LAYER_NORMS},
    **{f"{name}.bias left out": parameter_left_out(f"{name}.bias", 0.0) for name in LAYER_NORMS},
    **{f"h.1.{name}.bias left out": parameter_left_out(f"h.1.{name}.bias", 0.0) for name in LINEARS},
    "wrong slope": wrong_slope,
    "no slope": bias_changed(lambda bias: bias.clamp(max=0).where(bias.isinf(), 0.0)),
    "slope of the wrong sign": bias_changed(lambda bias: (-bias).where(bias.isfinite(), bias)),
    "slopes in reverse": bias_changed(lambda bias: bias.flip(1)),
    "one slope too high by a tenth": bias_changed(lambda bias: bias * torch.tensor([1.1, 1, 1, 1, 1, 1]).view(6, 1, 1)),
    "mask lets the next token in": bias_changed(sees_the_next_token),
    "mask leaves the token itself out": bias_changed(misses_itself),
    "padding ignored": padding_ignored,
    "scores not scaled": not_scaled,
    "qkv rows in thirds": qkv_in_thirds,
    "no embedding LayerNorm": no_embedding_layer_norm,
    "erf GELU": erf_gelu,
    "head untied": head_untied,
    "residual after LayerNorm": residual_after_layer_norm,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(batch: Batch, monkeypatch: pytest.MonkeyPatch, name: str):
    model = load_model(batch.folder)
    MUTATIONS[name](model, monkeypatch)
    assert batch.difference(model) > 3 * TOLERANCE
