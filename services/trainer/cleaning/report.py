"""What was kept and dropped, by language and filter, with examples: report.json, and report.md to read.

It is made of the statistics that datatrove keeps of every task, and of the dropped documents themselves. Examples are
redacted, whether or not their document was.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep

from services.trainer.cleaning import flagged_words, pii, published
from services.trainer.cleaning.config import CleaningConfig

SHOWN_CHARACTERS = 160

Tally = dict[str, dict[str, Counter[str]]]  # kind -> language -> what -> number


class WriteReport(PipelineStep):  # type: ignore[misc]
    type, name = "report", "report"

    def __init__(self, config: CleaningConfig) -> None:
        super().__init__()
        self._output, self._examples = config.output, config.examples
        self._not_applied = published.not_applied(flagged_words.read(config.flagged_words))

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        tally, examples = read_tally(self._output), self._read_examples()
        report = {**summary(tally), "not_applied": self._not_applied, "examples": examples}
        folder = get_datafolder(self._output)
        with folder.open("report.json", "wt", encoding="utf-8") as file:
            json.dump(report, file, ensure_ascii=False, indent=1, sort_keys=True)
        with folder.open("report.md", "wt", encoding="utf-8") as file:
            file.write(markdown(report))

    def _read_examples(self) -> dict[str, dict[str, list[dict[str, str]]]]:
        """filter -> language -> the first documents or lines that it took."""
        found: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
        for kind in ("dropped", "changed"):
            folder = get_datafolder(f"{self._output}/{kind}")
            for name in folder.list_files() if folder.exists("") else []:
                what, language, _ = name.split("/")
                shown = found[what][language]
                with folder.open(name, "rt", compression="infer", encoding="utf-8") as lines:
                    for line, _place in zip(lines, range(self._examples - len(shown)), strict=False):
                        shown.append(_example(json.loads(line)))
        return {what: dict(by_language) for what, by_language in found.items()}


def _example(row: dict[str, Any]) -> dict[str, str]:
    text = pii.redact(row["text"], pii.find(row["text"]))[:SHOWN_CHARACTERS]
    metadata = row.get("metadata", {})
    candidates = ", ".join(metadata.get("language_candidates", ()))
    return {"id": row["id"], "text": " ".join(text.split()), **({"candidates": candidates} if candidates else {})}


def read_tally(output: str) -> Tally:
    """The counts of all stages and tasks. Labels that are not ours are datatrove's own."""
    folder = get_datafolder(f"{output}/logs")
    tally: Tally = defaultdict(lambda: defaultdict(Counter))
    for name in folder.list_files(glob_pattern="*/stats/*.json"):
        with folder.open(name, "rt") as file:
            for step in json.load(file):
                for label, value in step["stats"].items():
                    match label.split("|"):
                        case [kind, language, what]:
                            number = value["total"] if isinstance(value, dict) else value
                            tally[kind][language][what] += round(number)
                        case ["unreadable", what]:
                            tally["unreadable"][""][what] += round(value["total"] if isinstance(value, dict) else value)
    return tally


def summary(tally: Tally) -> dict[str, Any]:
    """What the counts tell."""
    languages = sorted({*tally["kept"], *tally["dropped"]})
    return {
        "languages": {language: _of_language(tally, language) for language in languages},
        "undetermined": dict(sum((counts for counts in tally["candidates"].values()), Counter())),
        "unchecked": {language: counts.total() for language, counts in tally["unchecked"].items()},
        "unreadable_rows": dict(tally["unreadable"][""]),
    }


def _of_language(tally: Tally, language: str) -> dict[str, Any]:
    kept, dropped = tally["kept"][language]["clean"], tally["dropped"][language]
    kept_bytes, dropped_bytes = tally["kept_bytes"][language]["clean"], tally["dropped_bytes"][language]
    return {
        "documents": kept + dropped.total(),
        "bytes": kept_bytes + dropped_bytes.total(),
        "kept": {"documents": kept, "bytes": kept_bytes},
        "dropped": {what: {"documents": dropped[what], "bytes": dropped_bytes[what]} for what in sorted(dropped)},
        "changed": dict(sorted(tally["changed"][language].items())),
    }


def markdown(report: dict[str, Any]) -> str:
    """A table of documents by language and filter, one of lines and personal information, and examples."""
    languages: dict[str, Any] = report["languages"]
    parts = ["# What cleaning kept and dropped", _documents_table(languages), "## Removed within documents"]
    parts.append(_changes_table(languages))
    parts.append("## Languages that could not be told apart")
    undetermined = [[names, number] for names, number in sorted(report["undetermined"].items())]
    parts.append(_table(["candidates", "documents"], undetermined) if undetermined else "None.")
    notes = [
        *(f"{language}: {number} documents taken as declared" for language, number in report["unchecked"].items()),
        *(f"{number} rows left out: {what}" for what, number in report["unreadable_rows"].items()),
        *(f"{name} was not applied: {why}" for name, why in report["not_applied"].items()),
    ]
    parts += ["## Not checked", "\n".join(f"- {note}" for note in notes), "## Examples"]
    parts += [_example_list(what, by_language) for what, by_language in sorted(report["examples"].items())]
    return "\n\n".join(parts) + "\n"


def _documents_table(languages: dict[str, Any]) -> str:
    reasons = sorted({reason for row in languages.values() for reason in row["dropped"]})
    rows = [
        [language, row["documents"], row["kept"]["documents"], f"{_share(row):.1%}"]
        + [row["dropped"].get(reason, {}).get("documents", 0) for reason in reasons]
        for language, row in languages.items()
    ]
    return _table(["language", "documents", "kept", "bytes kept", *reasons], rows)


def _share(row: dict[str, Any]) -> float:
    return float(row["kept"]["bytes"] / max(1, row["bytes"]))


def _changes_table(languages: dict[str, Any]) -> str:
    kinds = sorted({kind for row in languages.values() for kind in row["changed"]})
    rows = [
        [code, *(row["changed"].get(kind, 0) for kind in kinds)] for code, row in languages.items() if row["changed"]
    ]
    return _table(["language", *kinds], rows) if rows else "Nothing."


def _example_list(what: str, by_language: dict[str, list[dict[str, str]]]) -> str:
    lines = [
        f"- {language} `{example['id']}`{_candidates(example)}: {_escaped(example['text'])}"
        for language, examples in sorted(by_language.items())
        for example in examples
    ]
    return "\n".join((f"### {what}", "", *lines))


def _candidates(example: dict[str, str]) -> str:
    return f" (may be {example['candidates']})" if "candidates" in example else ""


def _escaped(text: str) -> str:
    """Shown as it is, whatever Markdown or HTML it holds."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|!~" else character for character in text)


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines: list[Sequence[object]] = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
