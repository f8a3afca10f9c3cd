"""Answers against the `openai` package's own types, stricter than the client is with them."""

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from openai import BaseModel

M = TypeVar("M", bound=BaseModel)


def exactly(kind: type[M], answer: dict[str, Any]) -> M:
    """`answer` as a `kind`: every field of its declared type and nothing beside them. Raises on anything else."""
    value = kind.model_validate_json(json.dumps(answer), strict=True)
    assert list(_extras(value, kind.__name__)) == []
    assert answer.keys() == set(kind.model_fields), "OpenAI's answers have every field, null where there is nothing"
    return value


def _extras(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _extras(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _extras(item, f"{path}[{number}]")
