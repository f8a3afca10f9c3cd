"""Seeds of dropout: functions of the run's seed, the step and the rank's place, so that a resumed run draws the same.

Attention drops in a rank's own heads, so its seed is the rank's own. Hidden states are the same on all tensor-parallel
ranks, and so is what they drop, unless each has tokens of its own (sequence parallelism).
"""

import numpy as np
import torch

from services.trainer.ranks import Ranks


def micro_batch_seed(seed: int, step: int, position: int) -> int:
    """Of the micro-batch at `position` within the step's global batch."""
    return _mixed(seed, step, position)


def attention_seed(micro_batch: int, ranks: Ranks) -> int:
    """Of attention's dropout on this rank; a layer adds its number."""
    return _mixed(micro_batch, ranks.tp_rank + 1)


def seed_hidden(micro_batch: int, ranks: Ranks) -> None:
    """Seed what drops hidden states from here to the end of this rank's forward pass."""
    has_own_tokens = ranks.tensor_parallel is not None and ranks.tensor_parallel.sequence
    torch.manual_seed(_mixed(micro_batch, 0, ranks.pp_rank, ranks.tp_rank if has_own_tokens else 0))


def _mixed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 2)
