"""A report on a dataset (docs/datasets.md) in sentences, for the command and the playground."""

from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
SHOWN_LANGUAGES = 12


def sentences(report: Report) -> list[tuple[str, str]]:
    """(what about, what was found), in the order in which to look at them."""
    return [
        ("bad rows", _bad(report["bad"])),
        ("duplicates", _duplicates(report["duplicates"])),
        ("tokens", _lengths(report["lengths"], report["sequence_length"])),
        ("languages", _languages(report["languages"])),
        *(("leakage", _leakage(found, report["leakage"]["ngram"])) for found in report["leakage"]["held_out"]),
    ]


def _bad(found: Report) -> str:
    if not found["rows"]:
        return "none"
    reasons = (f"{item['rows']:,} {item['reason']} ({_rows(item['first'])})" for item in found["reasons"])
    return f"{found['rows']:,}: " + "; ".join(reasons)


def _duplicates(found: Report) -> str:
    exact, near = found["exact"], found["near"]
    texts = [f"{exact['rows']:,} the same as an earlier row{_pairs(exact['first'])}"]
    texts.append(f"{near['rows']:,} nearly, of {near['compared_rows']:,} compared{_pairs(near['first'])}")
    return "; ".join(texts)


def _lengths(found: Report, sequence_length: int) -> str:
    longer = found["longer_than_sequence"]
    figures = f"{found['tokens']:,} in all, {found['mean']:.1f} a row, at most {found['most']:,}"
    return (
        f"{figures}, {found['bytes_per_token']:.2f} bytes each; "
        f"{longer['rows']:,} rows ({longer['share']:.1%}) are longer than {sequence_length}"
    )


def _languages(found: Report) -> str:
    total = max(1, found["identified_rows"])
    names = list(found["identified"].items())
    mix = [f"{name} {rows / total:.1%}" for name, rows in names[:SHOWN_LANGUAGES]]
    if len(names) > SHOWN_LANGUAGES:
        mix.append(f"{len(names) - SHOWN_LANGUAGES} more")
    others = found["not_as_declared"]
    wrong = f"; {others['rows']:,} not in the language that they declare ({_rows(others['first'])})"
    wrong = wrong if others["rows"] else ""
    return f"{', '.join(mix) or 'none'} of {found['identified_rows']:,} rows identified{wrong}"


def _leakage(found: Report, ngram: int) -> str:
    text = f"{found['rows']:,} rows share {ngram} words in a row, or all, with {found['dataset']}"
    if not found["rows"]:
        return text
    return f"{text}, of which {found['held_out_rows']:,} rows ({found['held_out_share']:.1%}) are known so" + _pairs(
        found["first"], "held_out_row"
    )


def _rows(first: Sequence[Report]) -> str:
    return "rows " + ", ".join(str(item["row"]) for item in first)


def _pairs(first: Sequence[Report], other: str = "like_row") -> str:
    """ " (rows 7 as 3, 9 as 2)" """
    pairs = [f"{pair['row']} as {pair[other]}" for pair in first]
    return f" (rows {', '.join(pairs)})" if pairs else ""
