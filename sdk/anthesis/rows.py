"""The rows of a JSONL dataset: read as a stream, each checked against its format, every bad one reported.

The client checks a file before it sends it; the registry checks what it was sent, with this same code.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from anthesis.messages import check_messages

MAX_ROW_BYTES = 16 << 20
MAX_REPORTED = 1_000
MAX_YAML_BYTES = 1 << 20

# Not rows but YAML: format -> the key it must have, where it is described. The registry or the trainer reads it.
YAML_FORMATS = {"BLEND": ("corpora", "docs/corpora.md"), "MIXTURE": ("tasks", "docs/multitask.md")}

# Format -> keys that a row needs, keys that it may have; other keys are ignored.
FORMATS = {
    "TEXT": (("text",), ("context", "language")),
    "MULTITASK": (("inputs", "targets"), ("language",)),  # or COMPLETION, or "messages"
    "FIELDS": ((), ("language",)),
}
COMPLETION = ("prompt", "completion")  # OpenAI's names of inputs and targets


@dataclass(slots=True)
class RowsSummary:
    num_rows: int = 0
    longest_row_bytes: int = 0
    languages: set[str] = field(default_factory=set)


def check_rows(chunks: Iterable[bytes], dataset_format: str) -> RowsSummary:
    """Count the rows in `chunks` (bytes of the file, cut anywhere) and collect their languages.

    Raises ValueError listing every bad row by its number, from 1, and reason: the first 1,000 and how many more.
    """
    if dataset_format in YAML_FORMATS:
        return _check_yaml(chunks, dataset_format)
    if dataset_format not in FORMATS:
        known = ", ".join((*FORMATS, *YAML_FORMATS))
        raise ValueError(f"dataset format {dataset_format!r} is not known; choose one of {known}")
    needed, optional = FORMATS[dataset_format]
    summary = RowsSummary()
    bad: list[str] = []
    num_bad = 0
    for line in split_lines(chunks):
        summary.num_rows += 1
        summary.longest_row_bytes = max(summary.longest_row_bytes, len(line or b""))
        reason, language = check_row(line, needed, optional)
        if reason:
            num_bad += 1
            if len(bad) < MAX_REPORTED:
                bad.append(f"row {summary.num_rows}: {reason}")
        elif language:
            summary.languages.add(language)
    if num_bad:
        raise ValueError(_report(dataset_format, summary.num_rows, num_bad, bad))
    if not summary.num_rows:
        raise ValueError("the dataset has no rows; write one JSON object a line")
    return summary


def _check_yaml(chunks: Iterable[bytes], dataset_format: str) -> RowsSummary:
    """What can be said of a blend or a mixture without a YAML parser."""
    what, (key, page) = dataset_format.lower(), YAML_FORMATS[dataset_format]
    text = b""
    for chunk in chunks:
        text += chunk
        if len(text) > MAX_YAML_BYTES:
            raise ValueError(f"the {what} is longer than {MAX_YAML_BYTES} bytes; name {key} in it, not text")
    try:
        lines = text.decode().splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"the {what} is not UTF-8; write YAML, see {page}") from None
    if not any(line.startswith(f"{key}:") for line in lines):
        raise ValueError(f"the {what} has no line '{key}:'; write YAML, see {page}")
    return RowsSummary()


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes | None]:
    """Lines without their ends; None stands for one of more than MAX_ROW_BYTES, which is not kept in memory."""
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for end in whole:
            size += len(end)
            yield b"".join(parts) + end if size <= MAX_ROW_BYTES else None
            parts, size = [], 0
        size += len(rest)
        if size <= MAX_ROW_BYTES:
            parts.append(rest)
        else:
            parts = []
    if size:
        yield b"".join(parts) if size <= MAX_ROW_BYTES else None


def check_row(line: bytes | None, needed: tuple[str, ...], optional: tuple[str, ...]) -> tuple[str, str]:
    """(why the row is bad, "") or ("", its language)."""
    if line is None:
        return f"longer than {MAX_ROW_BYTES} bytes", ""
    try:
        row = json.loads(line.decode())  # bytes would be taken for UTF-16 at times
    except UnicodeDecodeError:
        return "not UTF-8", ""
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})" if line.strip() else "empty line", ""
    except RecursionError:
        return "nested too deeply", ""
    except ValueError:
        return "a number with too many digits", ""
    if not isinstance(row, dict):
        return f"a JSON {_kind(row)}, not an object", ""
    if "inputs" in needed and (other := next((key for key in ("messages", "prompt") if key in row), "")):
        if reason := _check_shape(row, other):
            return reason, ""
        needed = () if other == "messages" else COMPLETION
    if not needed and (reason := _check_free(row)):
        return reason, ""
    for key in needed:
        if reason := _check_string(row, key, empty_allowed=False):
            return reason, ""
    for key in optional:
        if row.get(key) is not None and (reason := _check_string(row, key, empty_allowed=True)):
            return reason, ""
    return "", row.get("language") or ""


def _check_shape(row: dict[str, object], key: str) -> str:
    """Of an example that is a conversation ("messages") or a completion ("prompt")."""
    others = ("inputs", "targets", *(COMPLETION if key == "messages" else ()))
    if beside := [other for other in others if other in row]:
        return f'"{key}" beside "{beside[0]}"; give one or the other'
    return check_messages(row["messages"]) if key == "messages" else ""


def _check_free(row: dict[str, object]) -> str:
    """Of a row whose fields may have any shape."""
    if not row:
        return "no field"
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""


def _check_string(row: dict[str, object], key: str, *, empty_allowed: bool) -> str:
    if key not in row:
        return f'no "{key}"'
    value = row[key]
    if not isinstance(value, str):
        return f'"{key}" is a JSON {_kind(value)}, not a string'
    if not value and not empty_allowed:
        return f'"{key}" is empty'
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return f'"{key}" has half a surrogate pair'
    return ""


def _kind(value: object) -> str:
    kinds = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")


def _report(dataset_format: str, num_rows: int, num_bad: int, bad: list[str]) -> str:
    head = f"{num_bad} of {num_rows} rows are not {dataset_format} rows; correct them and upload again"
    more = [f"and {num_bad - len(bad)} more"] if num_bad > len(bad) else []
    return "\n".join([head, *bad, *more])
