"""Licences as models and versions state them: ids joined by " AND ", all of which hold. Source: SPDX 2.3, annex D."""

import re
from collections.abc import Iterable

from services.common.errors import InvalidArgument

ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
MAX_IDS = 20
_AND = " AND "


def parse(expression: str) -> tuple[str, ...]:
    """Its ids, sorted, each once, in lower case: SPDX's have no case. Raises InvalidArgument."""
    ids = sorted({part.lower() for part in expression.split(_AND)})
    if len(ids) > MAX_IDS or not all(ID.fullmatch(licence) for licence in ids):
        raise InvalidArgument(
            f"licence {expression[:100]!r} is not allowed; give an SPDX identifier like 'apache-2.0', or "
            f"'bigscience-rail-1.0', or at most {MAX_IDS} joined by {_AND!r}"
        )
    return tuple(ids)


def join(ids: Iterable[str]) -> str:
    return _AND.join(sorted(set(ids)))


def normal(expression: str) -> str:
    """The one way in which these licences are written. Raises InvalidArgument."""
    return join(parse(expression))
