"""A look into a dataset: a few of its rows, each field's beginning. The file is read as a stream."""

import json
import random
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from anthesis.rows import YAML_FORMATS, split_lines

from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition
from services.registry.tables import Dataset

DEFAULT_ROWS, MAX_ROWS = 10, 100
MAX_FIELDS = 50
MAX_CHARACTERS = 500  # of a field, and of its name


@dataclass(frozen=True, slots=True)
class PreviewField:
    name: str
    text: str
    num_characters: int  # of the whole


@dataclass(frozen=True, slots=True)
class PreviewRow:
    number: int  # from 1
    fields: tuple[PreviewField, ...]


Preview = list[PreviewRow]


def preview(artifacts: ArtifactStore, dataset: Dataset, num_rows: int, seed: int | None) -> Preview:
    """The first rows, or with a seed rows drawn from all of them, in their order. Blocking.

    Raises FailedPrecondition for a dataset that is no rows.
    """
    if dataset.format in YAML_FORMATS:
        what = f"dataset {dataset.name!r} is a {dataset.format}, which has no rows but YAML"
        raise FailedPrecondition(f"{what}; `anthesis artifacts download {dataset.digest} FILE` fetches it")
    most = min(num_rows or DEFAULT_ROWS, MAX_ROWS, dataset.num_rows)
    places = range(most) if seed is None else random.Random(seed).sample(range(dataset.num_rows), most)
    wanted = set(places)
    with closing(_lines(artifacts, dataset.digest, max(wanted, default=-1))) as lines:
        return [_row(place + 1, line) for place, line in enumerate(lines) if place in wanted]


def _lines(artifacts: ArtifactStore, digest: str, last: int) -> Generator[bytes | None, None, None]:
    """Up to place `last`: what comes after is not read."""
    for place, line in enumerate(split_lines(artifacts.read(digest))):
        yield line
        if place >= last:
            return


def _row(number: int, line: bytes | None) -> PreviewRow:
    values = json.loads(line or b"{}")
    fields = list(values.items())[:MAX_FIELDS]
    return PreviewRow(number, tuple(_field(name, value) for name, value in fields))


def _field(name: str, value: object) -> PreviewField:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return PreviewField(_whole(name[:MAX_CHARACTERS]), _whole(text[:MAX_CHARACTERS]), len(text))


def _whole(text: str) -> str:
    """Without half surrogate pairs, which fields that no format asks for may have and no message can carry."""
    return text.encode("utf-8", "replace").decode()
