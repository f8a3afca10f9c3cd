"""ROOTS' rules for source code. Source: bigscience-workshop/data-preparation@9d058841, sourcing/code_dataset/."""

from typing import Literal

import numpy as np
import regex

REASONS = (
    "code_size",
    "code_licence",
    "code_token_lengths",
    "code_characters",
    "code_non_word_share",
    "code_longest_line",
)
MAX_BYTES = 1_048_575
_WORD_CHARACTER = regex.compile(r"\w")

# The published filter kept these alone, by a mistake that its authors left in place: `as_published` does so too.
COPYLEFT = frozenset({"lgpl-3.0", "agpl-3.0", "lgpl-2.1", "gpl-3.0", "gpl-2.0"})
LicenceRule = Literal["permissive", "as_published", "any"]


def reason_to_drop(text: str, licence: str | None, rule: LicenceRule) -> str | None:
    """The first rule that a file breaks; None for one to keep. A file without a licence breaks `as_published` alone."""
    if len(text.encode()) > MAX_BYTES:
        return "code_size"
    if not _has_right_licence(licence, rule):
        return "code_licence"
    if np.std([len(token) for token in text.split()] or [0]) <= 3:
        return "code_token_lengths"
    if not 100 < len(text) < 200_000:
        return "code_characters"
    if not 0.15 < 1 - len(_WORD_CHARACTER.findall(text)) / len(text) < 0.65:
        return "code_non_word_share"
    if not 20 < max(map(len, text.split("\n"))) < 1000:
        return "code_longest_line"
    return None


def _has_right_licence(licence: str | None, rule: LicenceRule) -> bool:
    if rule == "any":
        return True
    return (licence is not None and licence.lower() in COPYLEFT) == (rule == "as_published")
