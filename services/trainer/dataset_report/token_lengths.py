"""How long rows are in a tokenizer's tokens, as training counts them: with the </s> after each."""

from collections import Counter
from typing import Any

from services.trainer.dataset_report.rows import Row
from services.trainer.encoder import Encoder
from services.trainer.multitask import ExampleMaker

ROWS_PER_BATCH = 512  # encoded together, in parallel
CHARACTERS_PER_BATCH = 1 << 20  # or fewer rows: encoding takes about 110 times a text in memory
QUANTILES = (0.5, 0.95, 0.99)


class TokenLengths:
    def __init__(self, encoder: Encoder, sequence_length: int, *, are_examples: bool) -> None:
        """are_examples: rows are what a job makes examples of, without a mixture's templates."""
        self._encoder = encoder
        self._sequence_length = sequence_length
        self._maker = ExampleMaker() if are_examples else None
        self._batch: list[list[str]] = []
        self._num_characters = 0  # of the batch
        self._rows: Counter[int] = Counter()  # by length
        self._num_bytes = 0

    def add(self, row: Row) -> None:
        parts = self._maker.parts(row.values, 0) if self._maker else None
        texts = [text for text, _ in parts] if parts else [text for _, text in row.texts]
        self._batch.append(texts)
        self._num_characters += sum(map(len, texts))
        if len(self._batch) >= ROWS_PER_BATCH or self._num_characters >= CHARACTERS_PER_BATCH:
            self._count()

    def _count(self) -> None:
        ids = iter(self._encoder.encode([text for texts in self._batch for text in texts]))
        for texts in self._batch:
            self._rows[sum(len(next(ids)) for _ in texts) + 1] += 1
            self._num_bytes += sum(len(text.encode()) for text in texts)
        self._batch, self._num_characters = [], 0

    def result(self) -> dict[str, Any]:
        self._count()
        num_rows, num_tokens = self._rows.total(), sum(length * rows for length, rows in self._rows.items())
        beyond = {length: rows for length, rows in self._rows.items() if length > self._sequence_length}
        return {
            "tokens": num_tokens,
            "bytes_per_token": self._num_bytes / max(1, num_tokens),
            "mean": num_tokens / max(1, num_rows),
            "quantiles": {str(share): self._quantile(share) for share in QUANTILES},
            "most": max(self._rows, default=0),
            "histogram": self._histogram(),
            "longer_than_sequence": {
                "rows": sum(beyond.values()),
                "share": sum(beyond.values()) / max(1, num_rows),
                "tokens_beyond": sum((length - self._sequence_length) * rows for length, rows in beyond.items()),
            },
        }

    def _quantile(self, share: float) -> int:
        """The least length that so many of the rows do not exceed."""
        counted = 0
        for length, rows in sorted(self._rows.items()):
            counted += rows
            if counted >= share * self._rows.total():
                return length
        return 0

    def _histogram(self) -> list[dict[str, int]]:
        """Rows of up to 1, 2, 4, 8, … tokens."""
        found: Counter[int] = Counter()
        for length, rows in self._rows.items():
            found[1 << (length - 1).bit_length()] += rows
        return [{"up_to": bound, "rows": found[bound]} for bound in sorted(found)]
