"""NF4, 4-bit numbers for weights that are not trained. Torch-free; services/trainer/nf4.py computes with them.

A weight is kept as 4 bits and a scale in fp32 for 64 neighbours of a row. QLoRA's second quantization, of the scales,
is left out: it goes by a whole tensor's mean, so tensor-parallel ranks would round their parts otherwise than one rank.
Source: Dettmers et al. 2023, QLoRA, sections 2 and 3.
"""

from .config import BloomConfig

BLOCK = 64
BYTES = 4 / 8 + 4 / BLOCK  # of a weight


def refusal(config: BloomConfig, tp: int, zero_stage: int) -> str:
    """Why this model's layers cannot be kept so, with the remedy; "" when they can."""
    if zero_stage == 3:
        return "zero_stage=3 with base_weights=nf4: whole on each replica; use zero_stage 1 or 2, or no base_weights"
    columns = config.hidden_size // tp
    if columns % BLOCK:
        what = f"base_weights=nf4 with hidden_size={config.hidden_size} and tp={tp}: rows of {columns} columns"
        return f"{what} are no multiple of {BLOCK}; use a smaller tp, or no base_weights"
    return ""
