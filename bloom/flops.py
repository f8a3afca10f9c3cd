"""Arithmetic of training and of the cache, exactly. Torch-free.

Legend: h = hidden size, L = layers, s = sequence length, V = rows of the embedding.
Source: Narayanan et al. 2021, section 5.1, in the form whose figures BLOOM's logs show.
"""

from .config import BloomConfig


def flops_per_token(config: BloomConfig, *, seq_length: int, recompute: bool = False, frozen: bool = False) -> float:
    """FLOPs of one training token: 24 f L h² (1 + s/(6h) + V/(16 L h)), f = 3: the model's FLOPs.

    With activation recompute f = 4: hardware FLOPs, what BLOOM's logs count as TFLOPs per GPU.
    Weights that are frozen under adapters get no gradient: one pass less of all but attention. The adapters' own
    products are not counted.
    """
    h, layers = config.hidden_size, config.n_layer
    passes = 4 if recompute else 3
    head = config.vocab_size / (16 * layers * h)
    flops = 24 * passes * layers * h * h * (1 + seq_length / (6 * h) + head)
    return flops - 24 * layers * h * h * (1 + head) if frozen else flops


def layer_flops(config: BloomConfig, seq_length: int) -> float:
    """FLOPs of one token's forward pass through one layer; attention counts all pairs, also those the mask hides."""
    h = config.hidden_size
    return 24 * h * h * (1 + seq_length / (6 * h))


def head_flops(config: BloomConfig) -> float:
    """FLOPs of one token's forward pass through the head.

    Layers that are recomputed leave the head alone: 4 passes of the layers and 3 of the head are the formula at f = 4.
    At f = 3 the formula counts three quarters of the head.
    """
    return 2 * config.hidden_size * config.vocab_size


def kv_values_per_token(config: BloomConfig) -> int:
    """Numbers that the paged cache keeps for one token: a key and a value in every layer."""
    return 2 * config.n_layer * config.hidden_size
