"""What made a version, as its `training.json` says, and in what two versions' makings differ."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anthesis.v1.registry_pb2 import ModelVersion

TRAINING_FILE = "training.json"
_COMPARED = ("recipe", "lora", "base", "model_config", "tokenizer_digest", "datasets", "total_steps", "attempts")
_NO_CAUSE = ("attempts.first_step",)  # going on from a checkpoint changes no bit


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that was otherwise; of several attempts all values, in order."""

    name: str  # "recipe.seed", "attempts.libraries.torch"
    version: str
    other: str


def training_digest(version: ModelVersion) -> str | None:
    """The digest of the version's training.json; None for one that was imported, or made by an older release."""
    return next((file.digest for file in version.files if file.path == TRAINING_FILE), None)


def differences(training: str, other: str) -> list[Difference]:
    """In what two versions, whose training.json are given, were made differently and may come out so."""
    mine, theirs = _facts(training), _facts(other)
    names = [name for name in mine | theirs if mine.get(name) != theirs.get(name) and name not in _NO_CAUSE]
    return [Difference(name, mine.get(name, "-"), theirs.get(name, "-")) for name in names]


def _facts(training: str) -> dict[str, str]:
    record: dict[str, Any] = json.loads(training)
    compared = [*_COMPARED]
    if record.get("recipe", {}).get("bpe_dropout") or any(d["format"] == "blend" for d in record.get("datasets", [])):
        compared.append("tokens")  # else they follow from data, tokenizer and seed
    facts: dict[str, list[str]] = {}
    for name in compared:
        for path, value in _leaves(name, record.get(name)):
            values = facts.setdefault(path, [])
            if not values or values[-1] != value:
                values.append(value)
    return {path: ", then ".join(values) for path, values in facts.items()}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Paths of a JSON value's leaves; a list's items share theirs."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(path, item)
    elif value is not None:
        yield path, str(value)
