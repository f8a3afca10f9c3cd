"""How a job trains where OpenAI's API leaves it open: LoRA on the base, by the size of the file.

A batch is of windows, into which examples are packed whole, and not of examples.
"""

from dataclasses import dataclass

from services.gateway.fine_tuning import File, Training

LEARNING_RATE = 2e-4  # for a multiplier of 1. Source: Dettmers et al. 2023, QLoRA, table 9
SEED = 42
MIN_WINDOW, MAX_WINDOW = 256, 2048  # tokens; BLOOM was pre-trained on 2,048
MAX_BATCH = 8
STEPS_PER_EPOCH = 16  # so many, before a batch grows
TOKENS_AT_ONCE = 4096  # of a micro-batch, as the trainer's defaults have it
BYTES_PER_TOKEN = 4  # about


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """None: auto."""

    n_epochs: int | None = None
    batch_size: int | None = None  # windows of a step
    learning_rate_multiplier: float | None = None

    @property
    def multiplier(self) -> float:
        return self.learning_rate_multiplier or 1.0


def choose_training(asked: Hyperparameters, file: File, seed: int | None) -> Training:
    window = _window(file)
    batch = asked.batch_size or _batch(file, window)
    most = max(1, TOKENS_AT_ONCE // window)
    micro_batch = max(size for size in range(1, min(most, batch) + 1) if batch % size == 0)
    return Training(
        epochs=asked.n_epochs or _epochs(file.num_rows),
        micro_batch=micro_batch,
        gradient_accumulation=batch // micro_batch,
        learning_rate=LEARNING_RATE * asked.multiplier,
        sequence_length=window,
        seed=SEED if seed is None else seed,
    )


def _epochs(num_rows: int) -> int:
    """Three; more for at most 25 rows, fewer for more than 8,333. Source: OpenAI cookbook, Data preparation and
    analysis for chat model fine-tuning.
    """
    if 3 * num_rows < 100:
        return min(25, 100 // num_rows)
    return max(1, 25_000 // num_rows) if 3 * num_rows > 25_000 else 3


def _window(file: File) -> int:
    """Tokens; room for the longest row, which has at most as many tokens as bytes, as far as windows go."""
    return min(MAX_WINDOW, max(MIN_WINDOW, 1 << (file.longest_row_bytes - 1).bit_length()))


def _batch(file: File, window: int) -> int:
    windows = file.size_bytes // (BYTES_PER_TOKEN * window)
    return min(MAX_BATCH, max(1, windows // STEPS_PER_EPOCH))
