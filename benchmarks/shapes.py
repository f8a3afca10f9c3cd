"""What one step of a BLOOM must read and compute at the least: the machine's limits are set beside these.

Torch-free. Legend: h = hidden size, L = layers, V = vocabulary rows, B = sequences, s = keys that each has.
"""

from bloom.config import BloomConfig
from bloom.flops import kv_values_per_token

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int8_dynamic": 1}  # of one weight of a matrix


def matrix_weights(config: BloomConfig) -> int:
    """Weights of one step's matrix products: 12 h² a layer, and the head, which is the embedding."""
    return 12 * config.n_layer * config.hidden_size**2 + config.vocab_size * config.hidden_size


def weight_bytes(config: BloomConfig, weights: str) -> int:
    """Bytes of the whole model. int8 keeps a float32 scale for each row of a matrix; vectors are float32 there."""
    size = WEIGHT_BYTES[weights]
    if size > 1:
        return size * config.parameters
    matrices = matrix_weights(config)
    rows = config.vocab_size + 9 * config.hidden_size * config.n_layer  # qkv 3h, dense h, up 4h, down h
    return matrices + 4 * rows + 4 * (config.parameters - matrices)


def decode_bytes(config: BloomConfig, *, weights: str, batch: int, context: int, kv_bytes: int = 2) -> int:
    """Read by a decode step: every matrix once, and the keys and values of each sequence."""
    kv = kv_bytes * kv_values_per_token(config) * batch * context
    return WEIGHT_BYTES[weights] * matrix_weights(config) + kv


def decode_flops(config: BloomConfig, *, batch: int, context: int) -> int:
    """2 per weight and sequence; 2 for q·k and 2 for p·v per hidden unit, layer and key."""
    attention = 4 * config.hidden_size * config.n_layer * context
    return batch * (2 * matrix_weights(config) + attention)


def prefill_flops(config: BloomConfig, tokens: int) -> int:
    """One prompt: its tokens through the layers, causal attention, the head for the last token alone."""
    h, layers = config.hidden_size, config.n_layer
    causal = 4 * h * layers * tokens * (tokens + 1) // 2
    return 24 * layers * h * h * tokens + causal + 2 * config.vocab_size * h


def kv_block_bytes(config: BloomConfig, *, block_size: int, kv_bytes: int) -> int:
    return kv_bytes * kv_values_per_token(config) * block_size
