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
    ids = random_ids(32, vocab, seed=seed)
    for strength in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        _perturb(model, strength, seed)
        if not (weakness := _weakness(lambda ids: hf_logits(model, ids), ids)):
            return model
    raise ValueError(f"{n_layer} layers of {n_head} heads, hidden={hidden} cannot tell: {weakness}; use a larger model")


@torch.no_grad()
def _perturb(model: BloomForCausalLM, strength: float, seed: int) -> None:
    """Attention scores of order 1; residual branches that drown the embedding, which the tied head would repeat."""
    generator = torch.Generator().manual_seed(seed)
    hidden = model.config.hidden_size
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            is_layer_norm = name.endswith(("layernorm.weight", "ln_f.weight"))
            parameter.copy_((1 if is_layer_norm else 0) + 0.3 * noise)
        else:
            writes_residual = name.endswith(("self_attention.dense.weight", "dense_4h_to_h.weight"))
            gain = 1.0 if "word_embeddings" in name else 1.5 * strength if writes_residual else 1.5
            parameter.copy_(noise * gain / hidden**0.5)


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
    assert not (weakness := _weakness(logits, ids)), weakness


def _weakness(logits: Logits, ids: Tensor) -> str:
    right = logits(ids)
    predicted = right.argmax(dim=-1)
    if len(set(predicted.tolist())) <= min(right.shape) // 8:
        return f"outputs repeat: {predicted.tolist()}"
    if (predicted == ids).float().mean() > 0.5:
        return "the model repeats its input"
    order = torch.randperm(len(ids) - 1, generator=torch.Generator().manual_seed(1))
    shuffled = torch.cat([ids[:-1][order], ids[-1:]])
    change = (logits(shuffled)[-1] - right[-1]).abs().max().item()
    return "" if change > 0.05 else f"shuffling the prefix changes the last logits by {change} only"
