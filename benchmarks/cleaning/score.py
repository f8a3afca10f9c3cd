"""Recall and precision of a cleaning run, by kind, from what it left and the truth."""

import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cleaning.corpus import Planted
from services.trainer.cleaning import code_rules, exact_duplicates, identify_step, lines, near_duplicates
from services.trainer.cleaning.pii import TAGS

_TAG = re.compile("PI:(" + "|".join(TAGS) + ")")


@dataclass(frozen=True, slots=True)
class Score:
    """`found` of the `planted` were taken; of the `taken`, `right` had been planted."""

    kind: str
    planted: int
    found: int
    taken: int
    right: int

    @property
    def recall(self) -> float:
        return self.found / self.planted if self.planted else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.taken if self.taken else 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: texts by id, why others were dropped, and the lines removed."""

    kept: dict[str, dict[str, Any]]
    dropped: dict[str, str]
    removed_lines: dict[str, list[tuple[str, str]]]  # kind -> (id, line)


def read_outcome(output: Path) -> Outcome:
    kept = {row["id"]: row for row in _rows(output / "clean")}
    dropped = {row["id"]: row["metadata"]["filter_reason"] for row in _rows(output / "dropped")}
    kinds = (lines.BOILERPLATE, lines.FOREIGN)
    removed = {kind: [(row["id"], row["text"]) for row in _rows(output / "changed" / kind)] for kind in kinds}
    return Outcome(kept, dropped, removed)


def scores(truth: list[Planted], outcome: Outcome) -> list[Score]:
    return [
        _copies(
            "duplicate",
            truth,
            outcome,
            ("duplicate", "duplicate_but_for_marks", "code_duplicate"),
            exact_duplicates.REASON,
        ),
        _copies("near-duplicate, case or marks", truth, outcome, ("near_duplicate_case",), near_duplicates.REASON),
        _copies("near-duplicate, one word", truth, outcome, ("near_duplicate_word",), near_duplicates.REASON),
        _lines("boilerplate line", truth, outcome, lines.BOILERPLATE, "boilerplate"),
        _lines("line in another language", truth, outcome, lines.FOREIGN, "foreign"),
        _documents("document in another language", truth, outcome, "wrong_language", identify_step.CLAIMS),
        *(_personal(tag, truth, outcome) for tag in TAGS),
        _documents("unfit code", truth, outcome, "code_unfit", code_rules.REASONS),
        _languages(truth, outcome),
        _good(truth, outcome),
    ]


def _copies(name: str, truth: list[Planted], outcome: Outcome, kinds: tuple[str, ...], reason: str) -> Score:
    """Of a document and its copy one must go. Precision is over all that went for the reason, whatever their kind."""
    pairs = [document for document in truth if document.copy_of and document.kind in kinds]
    found = sum(not (document.id in outcome.kept and document.copy_of in outcome.kept) for document in pairs)
    taken = [name for name, why in outcome.dropped.items() if why == reason]
    copies = {name for document in truth if document.copy_of for name in (document.id, document.copy_of)}
    return Score(name, len(pairs), found, len(taken), sum(name in copies for name in taken))


def _lines(name: str, truth: list[Planted], outcome: Outcome, kind: str, planted_as: str) -> Score:
    """Over the documents that were kept: a line that goes with its document is no finding."""
    planted = [
        (document.id, line)
        for document in truth
        if document.id in outcome.kept
        for line in getattr(document, planted_as)
    ]
    found = sum(line not in outcome.kept[document]["text"].split("\n") for document, line in planted)
    taken = [(document, line.strip()) for document, line in outcome.removed_lines[kind]]
    everywhere = {(document.id, line) for document in truth for line in getattr(document, planted_as)}
    return Score(name, len(planted), found, len(taken), sum(line in everywhere for line in taken))


def _documents(name: str, truth: list[Planted], outcome: Outcome, kind: str, reasons: Iterable[str]) -> Score:
    planted = {document.id for document in truth if document.kind == kind}
    taken = [name for name, why in outcome.dropped.items() if why in reasons]
    found = sum(document not in outcome.kept for document in planted)
    return Score(name, len(planted), found, len(taken), sum(name in planted for name in taken))


def _personal(tag: str, truth: list[Planted], outcome: Outcome) -> Score:
    """Found is a value that is gone; right is a tag in a document of which a value with this tag was planted."""
    planted, found, taken, right = 0, 0, 0, 0
    for document in truth:
        if document.id in outcome.kept:
            text = outcome.kept[document.id]["text"]
            values = [value for value, its_tag in document.pii.items() if its_tag == tag]
            gone = sum(value not in text for value in values)
            tags = sum(match.group(1) == tag for match in _TAG.finditer(text))
            planted, found = planted + len(values), found + gone
            taken, right = taken + tags, right + min(tags, gone)
    return Score(f"personal information: {tag}", planted, found, taken, right)


def _languages(truth: list[Planted], outcome: Outcome) -> Score:
    """Documents that declare nothing: recall counts those told, precision those told rightly."""
    undeclared = [d for d in truth if d.declared is None and d.path is None]
    told = [d for d in undeclared if not outcome.dropped.get(d.id, "").startswith("language_")]
    kept = [d for d in undeclared if d.id in outcome.kept]
    right = sum(outcome.kept[d.id]["language"] == d.language for d in kept)
    return Score("language of a document", len(undeclared), len(told), len(kept), right)


def _good(truth: list[Planted], outcome: Outcome) -> Score:
    """Documents with nothing wrong that stay; precision is the share of what stays that has nothing wrong."""
    wrong = {"wrong_language", "code_unfit"}
    good = {document.id for document in truth if document.kind not in wrong and not document.copy_of}
    originals = {document.copy_of: document.id for document in truth if document.copy_of}
    stay = sum(name in outcome.kept or originals.get(name) in outcome.kept for name in good)
    right = sum(name in good or name in originals.values() for name in outcome.kept)
    return Score("good document stays", len(good), stay, len(outcome.kept), right)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(folder.rglob("*.jsonl.gz"))
        for line in gzip.open(path, "rt", encoding="utf-8")
    ]
