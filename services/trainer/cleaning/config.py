"""What a cleaning run is: a YAML file or flags, checked before anything is read."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from datatrove.io import get_datafolder

from services.trainer.cleaning import flagged_words
from services.trainer.cleaning.code_rules import LicenceRule
from services.trainer.cleaning.errors import ConfigError
from services.trainer.cleaning.languages import NATURAL, PROGRAMMING
from services.trainer.cleaning.pii import TAGS

Executor = Literal["local", "slurm", "ray"]
_CHOICES = {"executor": get_args(Executor), "licences": get_args(LicenceRule)}


@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningConfig:
    """Folders may be any that fsspec opens: `s3://bucket/prefix` as well as a path."""

    input: str  # folder with .jsonl (also .gz, .bz2, .xz) and plain text; every file that is not .jsonl is one document
    output: str  # folder: clean/, dropped/, changed/, report.json, report.md, logs/ and work/
    text_key: str = "text"
    id_key: str = "id"
    language_key: str = "language"  # in a row: what the data set declares, a code of ROOTS' or a programming language
    path_key: str = "path"  # in a row: the file's name, whose ending tells the programming language
    licence_key: str = "license"
    default_language: str | None = None  # of documents that declare none
    executor: Executor = "local"
    executor_options: dict[str, Any] = field(default_factory=dict)  # of datatrove's executor: partition, time, ...
    tasks: int = 0  # parts that the input is split into; 0: one per file
    workers: int = 0  # tasks at a time; 0: one per processor
    min_line_characters: int = 15  # shorter lines are never boilerplate
    min_line_repeats: int = 10  # a line seen this often in all documents is boilerplate
    foreign_lines: bool = True  # remove lines that are surely in another language than their document
    near_duplicates: bool = True
    flagged_words: str | None = None  # folder with <language>.txt, one word a line; null: that filter is not applied
    pii: tuple[str, ...] = TAGS
    licences: LicenceRule = "permissive"
    examples: int = 3  # per language and filter in the report

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not known; choose {', '.join(choices)}")
        if self.default_language not in (None, *NATURAL, *PROGRAMMING):
            raise ConfigError(f"default_language={self.default_language!r} is not one of ROOTS'; choose a code like sw")
        unknown = set(self.pii) - set(TAGS)
        if unknown:
            raise ConfigError(f"pii: {', '.join(sorted(unknown))} is not known; choose among {', '.join(TAGS)}")
        for name, least in (("tasks", 0), ("workers", 0), ("examples", 0), ("min_line_repeats", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} is too small; {least} is the least")

    @classmethod
    def read(cls, path: Path | None, flags: Mapping[str, Any]) -> "CleaningConfig":
        """The file's settings, overridden by flags. Raises ConfigError."""
        settings = {**(_yaml(path) if path else {}), **flags}
        known = {setting.name for setting in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise ConfigError(f"{', '.join(unknown)} is no setting; there are {', '.join(sorted(known))}")
        missing = {"input", "output"} - set(settings)
        if missing:
            raise ConfigError(f"{' and '.join(sorted(missing))} must be set, in the file or by a flag")
        if "pii" in settings:
            settings["pii"] = tuple(settings["pii"])
        return cls(**settings)

    def resolved(self) -> "CleaningConfig":
        """With numbers in place of 0. Raises ConfigError when there is nothing to read, or a list is none."""
        flagged_words.read(self.flagged_words)
        files = get_datafolder(self.input).list_files() if get_datafolder(self.input).exists("") else []
        if not files:
            raise ConfigError(f"input={self.input} holds no file; name a folder with .jsonl or text files")
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        settings["tasks"] = min(self.tasks or len(files), len(files))
        settings["workers"] = self.workers or os.cpu_count() or 1
        return CleaningConfig(**settings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} holds no settings; write lines like `input: folder`")
    return loaded
