"""Which languages the rows are in: as they say, and as the identifier that cleans corpora finds of a sample."""

import random
from collections import Counter
from typing import Any

from services.trainer.cleaning.identifier import MAX_CHARACTERS, UNKNOWN, identifier
from services.trainer.cleaning.languages import OTHER, PROGRAMMING, UNDETERMINED, normalised
from services.trainer.dataset_report.rows import Row

MAX_DECLARED = 1_000  # different ones: the rest is counted together
MAX_IDENTIFIED = 5_000  # rows, drawn from all: one takes a few milliseconds
FIRST = 5  # rows in another language than they say that are named


class LanguageMix:
    def __init__(self) -> None:
        self._declared: Counter[str] = Counter()
        self._sample: list[tuple[int, str, str]] = []  # row, its language as declared, text
        self._num_rows = 0
        self._random = random.Random(0)

    def add(self, row: Row) -> None:
        """Reservoir sampling: every row is in the sample with the same probability."""
        declared = row.language[:40]
        self._declared[declared if len(self._declared) < MAX_DECLARED or declared in self._declared else "others"] += 1
        place = self._num_rows if self._num_rows < MAX_IDENTIFIED else self._random.randrange(self._num_rows + 1)
        self._num_rows += 1
        if place < MAX_IDENTIFIED:
            self._sample[place : place + 1] = [(row.number, declared, row.text[:MAX_CHARACTERS])]

    def result(self) -> dict[str, Any]:
        found: Counter[str] = Counter()
        others = []
        for number, declared, text in sorted(self._sample):
            known = normalised(declared)
            if known in PROGRAMMING or known in UNKNOWN:
                found[str(known)] += 1  # which no model can tell
                continue
            language = identifier().guess(text).language if text.strip() else UNDETERMINED
            found[language] += 1
            if known and language not in (known, UNDETERMINED):
                others.append({"row": number, "declared": declared, "identified": language})
        return {
            "declared": dict(self._declared.most_common()),
            "identified_rows": len(self._sample),
            "identified": dict(found.most_common()),
            "undetermined": UNDETERMINED,
            "outside_roots": OTHER,
            "not_as_declared": {"rows": len(others), "first": others[:FIRST]},
        }
