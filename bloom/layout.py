"""How a training run is laid out over ranks: tensors (TP), layers (PP) and data (DP). Torch-free.

Ranks are numbered as Megatron-DeepSpeed numbers them: tensor ranks next to each other, then data, then stages.
"""

from dataclasses import dataclass
from itertools import pairwise

from .config import BloomConfig

VOCABULARY_MULTIPLE = 64  # rows of a rank's embedding: products of odd heights are slow


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    tp: int = 1  # ranks that share each layer
    pp: int = 1  # stages that share the layers
    dp: int = 1  # replicas that share the batch

    def __post_init__(self) -> None:
        for axis in ("tp", "pp", "dp"):
            if getattr(self, axis) < 1:
                raise ValueError(f"{axis}={getattr(self, axis)} of a layout is no count; use at least 1")

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read "TPxPPxDP". Raises ValueError."""
        try:
            tp, pp, dp = (int(part) for part in text.split("x"))
        except ValueError:
            raise ValueError(f"layout {text!r} is not TPxPPxDP; write three counts, for example 4x12x8") from None
        return cls(tp=tp, pp=pp, dp=dp)

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        return f"{self.tp}x{self.pp}x{self.dp}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What one pipeline stage holds."""

    index: int
    num_layers: int
    has_embedding: bool  # and its LayerNorm
    has_head: bool  # and the last LayerNorm; the head is a second copy of the embedding where another stage embeds

    def parameters(self, config: BloomConfig, tp: int) -> int:
        """Parameters of one tensor rank: matrices are cut, LayerNorms and the biases of row-parallel ones are not."""
        h = config.hidden_size
        layer = (12 * h * h + 7 * h) // tp + 6 * h  # qkv 3h²+3h and up 4h²+4h, dense h² and down 4h²; 2h + 4h whole
        ends = 2 * h * (self.has_embedding + self.has_head)  # LayerNorms
        if self.has_embedding or self.has_head:
            ends += vocabulary_rows(config, tp) * h
        return self.num_layers * layer + ends

    def adapter_parameters(self, config: BloomConfig, tp: int, rank: int) -> int:
        """Of LoRA on a tensor rank's linear layers: rank (in + out) of each; sides of 12 h in all are cut."""
        h = config.hidden_size
        return self.num_layers * (4 * h + 12 * h // tp) * rank


def vocabulary_rows(config: BloomConfig, tp: int) -> int:
    """Rows of every tensor rank's embedding, with their padding; one rank alone has none."""
    return config.vocab_size if tp == 1 else -(-config.vocab_size // (tp * VOCABULARY_MULTIPLE)) * VOCABULARY_MULTIPLE


def stages(config: BloomConfig, pp: int) -> tuple[Stage, ...]:
    """Of the whole model, in order."""
    bounds = [first_layer(config.n_layer, index, pp) for index in range(pp + 1)]
    return tuple(
        Stage(index=index, num_layers=end - start, has_embedding=index == 0, has_head=index == pp - 1)
        for index, (start, end) in enumerate(pairwise(bounds))
    )


def first_layer(num_layers: int, index: int, pp: int) -> int:
    """Of stage `index`; num_layers for the one behind the last.

    Embedding, layers and head are equal items in order, spread evenly over stages that have a layer each.
    Source: BLOOM-176B's --pp-partition-method 'type:transformer|embedding': 72 items, 6 on each of 12 stages.
    """
    if index in (0, pp):
        return 0 if index == 0 else num_layers
    balanced = (num_layers + 2) * index // pp - 1  # the embedding comes before layer 0
    return min(max(balanced, index), num_layers - (pp - index))
