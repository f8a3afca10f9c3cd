"""The engine's batch-invariant mode for CUDA in Triton's interpreter; test_interpreted.py runs this file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.batch_invariance import logits_alone_and_among_neighbours
from bloom import batch_invariant, kernels, parallelize
from bloom.kernels import (
    decode_attention,
    gelu,
    invariant_linear,
    prefill_attention,
    quantized_linear,
    residual_norm,
    row_norm,
)
from bloom.parallel import Shard
from bloom.parallelize import Stage
from bloom.weights import load_model
from services.inference import attention
from services.inference.cache_size import CacheSize
from services.inference.config import EngineConfig
from services.inference.torch_executor import TorchExecutor
from tests.support.bloom_models import make_hf_folder
from tests.support.triton_interpreter import correct_the_interpreter

correct_the_interpreter()
VOCAB, PROMPT = 97, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("model"), n_head=2, hidden=32, n_layer=2, vocab=VOCAB)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `_by_device` would take on CUDA, in place of the twins; the decode kernel must not be asked."""
    monkeypatch.setattr(kernels, "linear", invariant_linear.linear)
    monkeypatch.setattr(kernels, "int8_linear", quantized_linear.int8_linear)
    monkeypatch.setattr(attention, "paged_prefill_attention", prefill_attention.paged_prefill_attention)
    monkeypatch.setattr(attention, "paged_decode_attention", None)
    monkeypatch.setattr(parallelize, "layer_norm", row_norm.layer_norm)
    monkeypatch.setattr(parallelize, "add_layer_norm", residual_norm.add_layer_norm)
    monkeypatch.setattr(parallelize, "bias_gelu", gelu.bias_gelu)


def alone_and_among_neighbours(
    folder: Path, weights: str = "auto", *, attention_too: bool = True
) -> tuple[Tensor, Tensor]:
    model = load_model(folder, weights=None if weights == "auto" else "int8")
    batch_invariant.to_batch_invariant(model)
    config = EngineConfig(dtype="float32", weights=weights, threads=1, batch_invariant=attention_too)
    executor = TorchExecutor(Stage(model, Shard.of(model.config), fused=True), config)
    executor.allocate(CacheSize(num_blocks=12, block_size=16, max_sequence_tokens=48))
    return logits_alone_and_among_neighbours(executor, vocab=VOCAB, prompt_tokens=PROMPT, num_neighbours=3)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_logits_are_bitwise_the_same_alone_and_among_neighbours(folder: Path, weights: str):
    alone, among = alone_and_among_neighbours(folder, weights)
    assert len(set(alone.argmax(dim=-1).tolist())) > 8
    assert torch.equal(alone, among)


def test_a_kernel_of_its_own_for_single_tokens_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "paged_decode_attention", decode_attention.paged_decode_attention)
    alone, among = alone_and_among_neighbours(folder, attention_too=False)
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-4)
    assert not torch.equal(alone, among)
