"""Rows from which nothing good is learnt, by reason."""

import re
from collections.abc import Callable
from typing import Any

from services.trainer.dataset_report.rows import NoRow, Row

FIRST = 5  # rows of each reason that are named
MAX_REASONS = 50
SHOWN_CHARACTERS = 80
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_CHECKS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("white space only", lambda text: text != "" and not text.strip()),
    ("the mark of a wrong decoding, U+FFFD", lambda text: "\ufffd" in text),
    ("control characters", lambda text: bool(_CONTROL.search(text))),
)


class BadRows:
    def __init__(self) -> None:
        self._num_rows = 0
        self._reasons: dict[str, dict[str, Any]] = {}

    def add(self, row: Row | NoRow) -> None:
        found = {row.reason[:200]: ("", "")} if isinstance(row, NoRow) else _reasons(row)
        self._num_rows += bool(found)
        for reason, (field, text) in found.items():
            self._note(row.number, reason, field, text)

    def _note(self, number: int, reason: str, field: str, text: str) -> None:
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            reason = "other reasons"
        entry = self._reasons.setdefault(reason, {"rows": 0, "first": []})
        entry["rows"] += 1
        if len(entry["first"]) < FIRST:
            shown = {"field": field[:SHOWN_CHARACTERS], "text": text[:SHOWN_CHARACTERS]}
            entry["first"].append({"row": number} | shown)

    def result(self) -> dict[str, Any]:
        by_count = sorted(self._reasons.items(), key=lambda item: -item[1]["rows"])
        return {"rows": self._num_rows, "reasons": [{"reason": reason, **entry} for reason, entry in by_count]}


def _reasons(row: Row) -> dict[str, tuple[str, str]]:
    """Why the row is bad, each with the first field that is so and its text."""
    if not any(text for _, text in row.texts):
        return {"no text": ("", "")}
    found = {reason: next((item for item in row.texts if is_so(item[1])), None) for reason, is_so in _CHECKS}
    return {reason: item for reason, item in found.items() if item}
