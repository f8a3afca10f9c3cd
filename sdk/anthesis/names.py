"""What things may be called. Names travel in URLs, file paths and "<model>@<number>", so they are kept plain."""

import re

MAX_LENGTH = 200
_PART = r"[a-z0-9_][a-z0-9._-]*"
_MODEL = re.compile(rf"{_PART}(/{_PART})?")
_SIMPLE = re.compile(_PART)


def check_model_name(name: str) -> str:
    """Return `name`; raise ValueError unless it may name a model: "bigscience/bloom-560m"."""
    return _check(_MODEL, "model name", name, "at most one slash")


def check_name(kind: str, name: str) -> str:
    """Return `name`; raise ValueError unless it may name a `kind` (alias, dataset, deployment)."""
    return _check(_SIMPLE, f"{kind} name", name, "no slash")


def _check(pattern: re.Pattern[str], kind: str, name: str, slashes: str) -> str:
    if len(name) > MAX_LENGTH or not pattern.fullmatch(name):
        shown = name if len(name) <= MAX_LENGTH else name[:40] + "…"
        raise ValueError(
            f"{kind} {shown!r} is not allowed; use a-z, 0-9, '.', '_', '-', "
            f"starting with a letter, digit or '_', {slashes}, at most {MAX_LENGTH} characters"
        )
    return name
