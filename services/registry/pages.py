"""Lists in pages. A token names the last row seen, so rows that come or go in between neither repeat nor vanish."""

import base64
import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Integer, Select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from services.common.errors import InvalidArgument

DEFAULT_PAGE = 50
MAX_PAGE = 200
MAX_ID = 2**31 - 1
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class PageRequest:
    size: int = 0  # 0: the default; more than the maximum: the maximum
    token: str = ""  # "": the first page


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    rows: list[Row]
    next_token: str  # "": this is the last page


async def read_page(
    session: AsyncSession,
    query: Select[Row],
    key: InstrumentedAttribute[Any],
    request: PageRequest,
    *,
    scope: str,
    newest_first: bool = False,
) -> Page[Row]:
    """One page of `query`, ordered by the unique column `key`. `scope` tells one list's tokens from another's.

    Raises InvalidArgument for a token that this list has not given out.
    """
    size = min(request.size or DEFAULT_PAGE, MAX_PAGE)
    if request.token:
        last = _decode(request.token, scope, int if isinstance(key.type, Integer) else str)
        query = query.where(key < last if newest_first else key > last)
    query = query.order_by(key.desc() if newest_first else key).limit(size + 1)
    rows = list(await session.scalars(query))
    more = len(rows) > size
    rows = rows[:size]
    return Page(rows, _encode(scope, getattr(rows[-1], key.key)) if more else "")


def _encode(scope: str, last: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps([scope, last]).encode()).decode()


def _decode(token: str, scope: str, kind: type) -> str | int:
    try:
        found, last = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, TypeError, RecursionError):
        found, last = None, None
    if found != scope or type(last) is not kind or (isinstance(last, int) and abs(last) > MAX_ID):
        raise InvalidArgument(f"page_token {token[:40]!r} is not from this list; leave it empty to start over")
    assert isinstance(last, str | int)
    return last
