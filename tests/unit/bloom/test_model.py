import pytest
import torch

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.tensors import expected_tensors

CONFIG = BloomConfig(hidden_size=48, n_layer=3, n_head=6, vocab_size=211, hidden_dropout=0.1)


def forward(model: BloomModel, ids: torch.Tensor) -> torch.Tensor:
    return model.logits(model(ids, DenseCausalAttention(slopes(6), 1, len(ids))))


def test_parameters_are_the_expected_tensors_in_order():
    model = BloomModel(CONFIG, device="meta")
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected_tensors(CONFIG)
    assert list(dict(model.named_parameters())) == list(expected_tensors(CONFIG))
    assert not list(model.buffers())


@pytest.mark.parametrize("name", ["560m", "176b"])
def test_a_preset_has_as_many_parameters_as_its_config_says(name: str):
    config = BloomConfig.preset(name)
    assert sum(p.numel() for p in BloomModel(config, device="meta").parameters()) == config.parameters


def test_initialization_is_blooms():
    config = BloomConfig(hidden_size=192, n_layer=8, n_head=6, vocab_size=4096, initializer_range=0.03)
    model = BloomModel(config)
    model.initialize(0)
    block = model.h[3]
    for weight in (model.word_embeddings.weight, block.self_attention.query_key_value.weight):
        assert weight.std().item() == pytest.approx(0.03, rel=0.02)
    for weight in (block.self_attention.dense.weight, block.mlp.dense_4h_to_h.weight):
        assert weight.std().item() == pytest.approx(0.03 / 4, rel=0.02)  # / sqrt(2 * 8)
    assert block.mlp.dense_h_to_4h.bias.eq(0).all()
    assert block.input_layernorm.weight.eq(1).all()
    assert model.ln_f.bias.eq(0).all()


def test_a_seed_gives_one_model_in_every_dtype():
    models = [BloomModel(CONFIG), BloomModel(CONFIG, dtype=torch.bfloat16), BloomModel(CONFIG)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        model.initialize(seed)
    first, half, other = (model.h[0].mlp.dense_h_to_4h.weight for model in models)
    assert torch.equal(first.bfloat16(), half)
    assert not torch.equal(first, other)


def test_dropout_acts_in_training_alone():
    model = BloomModel(CONFIG)
    model.initialize(0)
    ids = torch.arange(20)
    assert not torch.equal(forward(model, ids), forward(model, ids))
    model.eval()
    assert torch.equal(forward(model, ids), forward(model, ids))


def test_every_parameter_gets_a_gradient_and_the_head_shares_the_embeddings():
    model = BloomModel(CONFIG)
    model.initialize(0)
    forward(model, torch.arange(20)).logsumexp(dim=-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.word_embeddings.weight.grad[200].abs().sum() > 0  # not among the ids: reached through the head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_fp32(dtype: torch.dtype):
    model = BloomModel(CONFIG).eval()
    model.initialize(0, std=0.1)
    ids = torch.randint(211, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = forward(model, ids)
        half = forward(model.to(dtype), ids)
    assert half.dtype == dtype
    assert (half.float() - exact).norm() / exact.norm() < (0.02 if dtype == torch.bfloat16 else 0.003)
