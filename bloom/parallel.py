"""Which part of a model one rank holds: tensor parallel inside layers, pipeline stages across them. Torch-free.

Source: Shoeybi et al. 2019, Megatron-LM, section 3; Narayanan et al. 2021, section 2. query_key_value, dense_h_to_4h
and the embedding (which is the head) are cut by rows, dense and dense_4h_to_h by columns: their outputs are summed over
the ranks, their whole biases added once. The embedding is held by the first stage and, as the head, by the last.
"""

from dataclasses import dataclass

from .alibi import slopes
from .config import BloomConfig
from .layout import first_layer, vocabulary_rows

_WHOLE = slice(None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Rank tp_rank of tp_size of the layers first_layer to last_layer, both included."""

    tp_rank: int = 0
    tp_size: int = 1
    first_layer: int
    last_layer: int

    @classmethod
    def of(
        cls, config: BloomConfig, *, tp_rank: int = 0, tp_size: int = 1, pp_rank: int = 0, pp_size: int = 1
    ) -> "Shard":
        """A rank's share: see first_layer. Raises ValueError where heads or layers do not divide."""
        if config.n_head % tp_size:
            *others, last = (str(n) for n in range(1, config.n_head + 1) if config.n_head % n == 0)
            choices = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"tp={tp_size} does not divide {config.n_head} heads; choose {choices}")
        if pp_size > config.n_layer:
            raise ValueError(f"pp={pp_size} stages cannot share {config.n_layer} layers; choose 1 to {config.n_layer}")
        assert 0 <= tp_rank < tp_size
        assert 0 <= pp_rank < pp_size
        start, end = (first_layer(config.n_layer, rank, pp_size) for rank in (pp_rank, pp_rank + 1))
        return cls(tp_rank=tp_rank, tp_size=tp_size, first_layer=start, last_layer=end - 1)

    @property
    def num_layers(self) -> int:
        return self.last_layer - self.first_layer + 1

    def is_first(self) -> bool:
        """Whether this stage embeds the ids."""
        return self.first_layer == 0

    def is_last(self, config: BloomConfig) -> bool:
        """Whether this stage computes ln_f and the logits."""
        return self.last_layer == config.n_layer - 1

    def heads(self, config: BloomConfig) -> slice:
        return self._share(config.n_head)

    def slopes(self, config: BloomConfig) -> tuple[float, ...]:
        """ALiBi's slopes of this rank's heads: cut out of the whole model's."""
        return slopes(config.n_head)[self.heads(config)]

    def ffn(self, config: BloomConfig) -> slice:
        """Rows of dense_h_to_4h, columns of dense_4h_to_h."""
        return self._share(config.ffn_size)

    def vocabulary(self, config: BloomConfig) -> slice:
        """Ids whose rows this rank has, perhaps none; `vocabulary_rows` counts the padding after them, too."""
        start, end = (self.vocabulary_rows(config) * rank for rank in (self.tp_rank, self.tp_rank + 1))
        return slice(min(start, config.vocab_size), min(end, config.vocab_size))

    def vocabulary_rows(self, config: BloomConfig) -> int:
        """Rows of every rank's embedding, with their padding; one rank alone has none."""
        return vocabulary_rows(config, self.tp_size)

    def holds(self, config: BloomConfig, name: str) -> bool:
        """Whether this stage has the tensor `name` (canonical, with the layer's number in the whole model)."""
        parts = name.split(".")
        if parts[0] == "h":
            return self.first_layer <= int(parts[1]) <= self.last_layer
        if parts[0] == "word_embeddings":
            return self.is_first() or self.is_last(config)  # the last stage's head
        return self.is_last(config) if parts[0] == "ln_f" else self.is_first()

    def is_cut(self, config: BloomConfig, name: str) -> bool:
        """Whether tensor-parallel ranks have parts of the tensor, not all of it each."""
        return self.tp_size > 1 and self.part(config, name) != (_WHOLE, _WHOLE)

    def stands_for(self, config: BloomConfig, name: str) -> bool:
        """Whether, of the ranks that hold the same of a tensor, this is the one to speak of it."""
        is_first = self.is_first() if name.startswith("word_embeddings.") else self.holds(config, name)
        return is_first and (self.tp_rank == 0 or self.is_cut(config, name))

    def part(self, config: BloomConfig, name: str) -> tuple[slice, slice]:
        """Rows and columns of the whole tensor `name` that this rank has; a vector's rows alone count.

        Of an adapter on a layer, `lora_a` takes the layer's columns and `lora_b` its rows.
        """
        heads, ffn = self.heads(config), self.ffn(config)
        d = config.head_dim
        match name.rsplit(".", 2)[-2:]:
            case ["word_embeddings", _]:
                return self.vocabulary(config), _WHOLE
            case ["query_key_value" | "dense_h_to_4h", "lora_a"]:
                return _WHOLE, _WHOLE
            case ["query_key_value", _]:  # rows are [N, 3, D]
                return slice(3 * d * heads.start, 3 * d * heads.stop), _WHOLE
            case ["dense", "weight" | "lora_a"]:
                return _WHOLE, slice(d * heads.start, d * heads.stop)
            case ["dense_h_to_4h", _]:
                return ffn, _WHOLE
            case ["dense_4h_to_h", "weight" | "lora_a"]:
                return _WHOLE, ffn
        return _WHOLE, _WHOLE

    def _share(self, count: int) -> slice:
        """This rank's equal part of `count` (which tp_size divides)."""
        size = count // self.tp_size
        return slice(self.tp_rank * size, (self.tp_rank + 1) * size)
