"""The plain twins of the kernels: what they compute, in torch. Also the torch path of the engine on a CPU."""

from .alibi_skip import default_tolerance, kept_blocks
from .bias_gelu import bias_gelu
from .kv_cache import store_kv
from .layer_norm import add_layer_norm, layer_norm
from .linear import int8_linear, linear
from .paged_attention import paged_decode_attention, paged_prefill_attention
from .sampling import penalize, sample

__all__ = [
    "add_layer_norm",
    "bias_gelu",
    "default_tolerance",
    "int8_linear",
    "kept_blocks",
    "layer_norm",
    "linear",
    "paged_decode_attention",
    "paged_prefill_attention",
    "penalize",
    "sample",
    "store_kv",
]
