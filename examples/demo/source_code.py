"""A little source code, read where it lies: in packages that the platform has installed for itself."""

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from .corpus import Passage

PROGRAMMING_LANGUAGES = (
    "C",
    "C#",
    "C++",
    "Go",
    "Java",
    "JavaScript",
    "Lua",
    "PHP",
    "Python",
    "Ruby",
    "Rust",
    "Scala",
    "TypeScript",
)
MAX_TRAINING_BYTES = 3_000  # per language: a little, for the model has little time
MAX_HELD_OUT_BYTES = 3_000
MAX_PASSAGE_BYTES = 800


@dataclass(frozen=True, slots=True)
class _Source:
    language: str
    training: str  # glob in site-packages
    held_out: str  # another file


_SOURCES = (
    _Source("C", "websockets/speedups.c", "markupsafe/_speedups.c"),
    _Source("C++", "greenlet/TStackState.cpp", "greenlet/TThreadStateDestroy.cpp"),
    _Source("JavaScript", "playwright/driver/package/lib/tools/cli-client/s*.js", "playwright/driver/package/lib/*.js"),
    _Source("Python", "click/formatting.py", "click/_textwrap.py"),
    _Source("TypeScript", "playwright/driver/package/types/types.d.ts", "playwright/driver/package/types/structs.d.ts"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceCode:
    """Text by programming language; what is held out comes from other files than what is trained on."""

    training: dict[str, str]
    held_out: dict[str, str]

    @property
    def missing(self) -> list[str]:
        return [language for language in PROGRAMMING_LANGUAGES if language not in self.training]


def gather(site_packages: Path | None = None) -> SourceCode:
    """Read what there is; a language whose package is not installed is left out."""
    root = site_packages or Path(sysconfig.get_paths()["purelib"])
    training, held_out = {}, {}
    for source in _SOURCES:
        learn, test = _read(root, source.training, MAX_TRAINING_BYTES), _read(root, source.held_out, MAX_HELD_OUT_BYTES)
        if learn and test:
            training[source.language], held_out[source.language] = learn, test
    return SourceCode(training=training, held_out=held_out)


def documents(code: SourceCode) -> list[dict[str, Any]]:
    """TEXT rows: one document per language."""
    return [{"text": text, "language": language} for language, text in code.training.items()]


def passages(code: SourceCode) -> list[Passage]:
    """The held-out code in passages, each with the one before it as context."""
    return [
        Passage(language=language, context=before, text=text)
        for language, held_out in code.held_out.items()
        for before, text in pairwise(["", *cut(held_out)])
    ]


def cut(text: str) -> Iterator[str]:
    """Cut at line ends into passages of about MAX_PASSAGE_BYTES that together are the text."""
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if lines and size + len(line.encode()) > MAX_PASSAGE_BYTES:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line.encode())
    if lines:
        yield "".join(lines)


def _read(root: Path, pattern: str, max_bytes: int) -> str:
    """The first whole lines, up to `max_bytes`, of the files that match, in the order of their names."""
    kept: list[str] = []
    size = 0
    for path in sorted(root.glob(pattern)):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            size += len(line.encode())
            if size > max_bytes:
                return "".join(kept)
            kept.append(line)
    return "".join(kept)
