"""What a step must read and compute, from the shapes; and checkpoints of random weights that are what they say."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import shapes
from benchmarks.peers.gguf import gguf_name
from benchmarks.random_model import random_model
from bloom.checkpoint import open_checkpoint
from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.tensors import expected_tensors

CONFIG = BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)


def test_matrix_weights_are_those_of_the_model() -> None:
    model = BloomModel(CONFIG, device="meta")
    assert shapes.matrix_weights(CONFIG) == sum(one.numel() for one in model.parameters() if one.dim() == 2)


def test_int8_counts_a_scale_for_each_row_and_float_vectors() -> None:
    model = BloomModel(CONFIG, device="meta")
    matrices = [one for one in model.parameters() if one.dim() == 2]
    vectors = [one for one in model.parameters() if one.dim() == 1]
    expected = sum(one.numel() + 4 * one.shape[0] for one in matrices) + 4 * sum(one.numel() for one in vectors)
    assert shapes.weight_bytes(CONFIG, "int8") == expected


def test_a_decode_step_of_one_sequence_reads_bloom_560m_in_28_ms_at_40_gb_s() -> None:
    config = BloomConfig.preset("560m")
    assert shapes.decode_bytes(config, weights="bfloat16", batch=1, context=0) / 40e9 == pytest.approx(0.028, rel=0.01)


def test_prefill_operations_are_those_of_the_products_and_of_causal_attention() -> None:
    layers, h, tokens = CONFIG.n_layer, CONFIG.hidden_size, 5
    attention = sum(4 * h * layers * keys for keys in range(1, tokens + 1))  # q·k and p·v
    head = 2 * CONFIG.vocab_size * h
    assert shapes.prefill_flops(CONFIG, tokens) == 2 * 12 * layers * h * h * tokens + attention + head


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_random_checkpoint_is_whole(tmp_path: Path, weights: str) -> None:
    checkpoint = open_checkpoint(random_model(tmp_path, CONFIG, weights=weights))
    dtypes = {checkpoint.tensors[name].dtype for name, shape in expected_tensors(CONFIG).items() if len(shape) == 2}
    assert dtypes == {{"float32": "F32", "bfloat16": "BF16", "int8": "I8"}[weights]}


def test_a_checkpoint_that_is_there_is_kept(tmp_path: Path) -> None:
    file = random_model(tmp_path, CONFIG, weights="float32") / "model.safetensors"
    written = file.stat().st_mtime_ns
    random_model(tmp_path, CONFIG, weights="float32")
    assert file.stat().st_mtime_ns == written


def test_both_float_formats_are_one_model(tmp_path: Path) -> None:

    full, half = (
        load_file(random_model(tmp_path / w, CONFIG, weights=w) / "model.safetensors") for w in ("float32", "bfloat16")
    )
    assert all(torch.equal(tensor.bfloat16(), half[name]) for name, tensor in full.items())


def test_every_tensor_has_a_name_in_gguf() -> None:
    names = {gguf_name(name) for name in expected_tensors(CONFIG)}
    assert len(names) == len(expected_tensors(CONFIG))
    assert {"token_embd.weight", "blk.1.ffn_down.bias", "blk.0.attn_qkv.weight", "output_norm.bias"} <= names
