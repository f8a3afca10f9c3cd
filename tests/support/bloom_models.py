"""BLOOM models that can tell a right implementation from a wrong one, made by transformers.

With default-initialised weights a BLOOM mostly repeats its last token whatever attention does, and zero biases and unit
LayerNorms hide forgotten terms. So every parameter is perturbed, and `assert_discriminates` checks that it sufficed.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import BloomForCausalLM

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.model import BloomModel

Logits = Callable[[Tensor], Tensor]  # ids (S,) -> logits (S, V)


def make_hf_model(
    *, n_head: int = 6, hidden: int = 48, n_layer: int = 2, vocab: int = 211, seed: int = 0, **config: object
) -> BloomForCausalLM:
    """A fp32 BloomForCausalLM in evaluation mode with every parameter perturbed. Defaults: 6 heads, no power of two."""
    hf_config = transformers.BloomConfig(
        hidden_size=hidden, n_head=n_head, n_layer=n_layer, vocab_size=vocab, pad_token_id=3, **config
    )
    model = BloomForCausalLM(hf_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(noise * _gain(name, hidden) / hidden**0.5)
            elif name.endswith("layernorm.weight") or name.endswith("ln_f.weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model


def _gain(name: str, hidden: int) -> float:
    """Attention scores of order 1; residual branches that drown the embedding, which the tied head would repeat."""
    if "word_embeddings" in name:
        return 1.0
    writes_residual = name.endswith(("self_attention.dense.weight", "dense_4h_to_h.weight"))
    return 1.5 * max(1.0, hidden**0.5 / 12) if writes_residual else 1.5


def make_hf_folder(
    folder: Path,
    *,
    n_head: int = 6,
    hidden: int = 48,
    n_layer: int = 2,
    vocab: int = 211,
    sharded: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A Hugging Face BLOOM folder written by transformers, every parameter perturbed; returns folder."""
    model = make_hf_model(n_head=n_head, hidden=hidden, n_layer=n_layer, vocab=vocab, seed=seed).to(dtype)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=num_bytes // 3 if sharded else "5GB")
    return folder


def random_ids(length: int, vocab: int, *, seed: int = 0) -> Tensor:
    """(length,) int64."""
    return torch.randint(vocab, (length,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hf_logits(model: BloomForCausalLM, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The oracle: (B, S, V) from ids (B, S), or (S, V) from (S,)."""
    if ids.dim() == 1:
        return hf_logits(model, ids[None], attention_mask)[0]
    return model(input_ids=ids, attention_mask=attention_mask).logits


@torch.no_grad()
def bloom_logits(model: BloomModel, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Ours, by dense attention: (B, S, V) from ids (B, S), or (S, V) from (S,)."""
    if ids.dim() == 1:
        return bloom_logits(model, ids[None], attention_mask)[0]
    attend = DenseCausalAttention(slopes(model.config.n_head), *ids.shape, padding_mask=attention_mask)
    return model.logits(model(ids.flatten(), attend)).unflatten(0, ids.shape)


def assert_discriminates(logits: Logits, ids: Tensor) -> None:
    """The model's outputs are diverse, and the last one depends on the order of the prefix."""
    right = logits(ids)
    predicted = right.argmax(dim=-1)
    assert len(set(predicted.tolist())) > min(right.shape) // 8, f"outputs repeat: {predicted.tolist()}"
    assert (predicted == ids).float().mean() < 0.5, "the model repeats its input"
    order = torch.randperm(len(ids) - 1, generator=torch.Generator().manual_seed(1))
    shuffled = torch.cat([ids[:-1][order], ids[-1:]])
    change = (logits(shuffled)[-1] - right[-1]).abs().max().item()
    assert change > 0.05, f"shuffling the prefix changes the last logits by {change} only"
