"""Measuring a model once: what was measured is kept under a hash of all that it depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anthesis.client import Client
from anthesis.v1.registry_pb2 import ModelVersion

from . import baselines, evaluate
from .bars import ModelResults
from .data import Data
from .sizes import Size, Sizes

COMPLETION_TOKENS = 48


def of_baselines(data: Data, folder: Path) -> dict[str, Sizes]:
    passages = [asdict(passage) for passage in data.passages]
    key = _key("baselines", data.training_text, passages)
    found = _kept(folder, key, lambda: _plain(baselines.measure(data.training_text, data.passages)))
    return {name: _sizes(by_language) for name, by_language in found.items()}


def of_text(client: Client, version: ModelVersion, data: Data, folder: Path) -> Sizes:
    """What a version makes of the held-out passages, asked through the gateway."""
    key = _key("text", _weights(version), [asdict(passage) for passage in data.passages])
    measured = _kept(folder, key, lambda: _plain({"text": evaluate.model_sizes(client, version.name, data.passages)}))
    return _sizes(measured["text"])


def of_model(client: Client, version: ModelVersion, data: Data, folder: Path) -> ModelResults:
    """Tasks and completions of a version, asked through the gateway."""
    asked = [asdict(example) for examples in (data.naming, data.pairs) for example in examples]
    shown = [asdict(example) for example in data.shown]
    key = _key("model", _weights(version), asked, shown, data.prompts, COMPLETION_TOKENS, str(evaluate.LIVELY))

    def measure() -> dict[str, Any]:
        prompts = [prompt for _, prompt in data.prompts]
        return {
            "naming": evaluate.naming_accuracy(client, version.name, data.naming),
            "chrf": evaluate.chrf(client, version.name, data.pairs),
            "answers": evaluate.answer_all(client, version.name, data.shown),
            "completions": evaluate.complete_all(client, version.name, prompts, COMPLETION_TOKENS, evaluate.LIVELY),
        }

    return ModelResults(**_kept(folder, key, measure))


def _weights(version: ModelVersion) -> list[str]:
    return [version.tokenizer_digest, *sorted(file.digest for file in version.files if not file.carried)]


def _kept(folder: Path, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = folder / f"{key}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".part")
        written.write_text(json.dumps(measure(), ensure_ascii=False))
        written.rename(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _key(kind: str, *parts: Any) -> str:
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"


def _plain(sizes: Mapping[str, Sizes]) -> dict[str, Any]:
    return {name: {k: [v.bits, v.num_bytes] for k, v in by_language.items()} for name, by_language in sizes.items()}


def _sizes(plain: Mapping[str, Sequence[Any]]) -> Sizes:
    return {language: Size(float(bits), int(num_bytes)) for language, (bits, num_bytes) in plain.items()}
