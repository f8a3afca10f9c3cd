"""The plain twins of the kernels: what they compute, in torch. Also the torch path of the engine on a CPU."""

from .alibi_skip import default_tolerance, kept_blocks
from .kv_cache import store_kv
from .paged_attention import paged_decode_attention, paged_prefill_attention

__all__ = [
    "default_tolerance",
    "kept_blocks",
    "paged_decode_attention",
    "paged_prefill_attention",
    "store_kv",
]
